"""The Open Inference Protocol, version 2, over HTTP, as KServe and Triton speak it.

    GET  /v2                                            the server
    GET  /v2/health/live, /v2/health/ready              whether it lives; whether predictions are answered
    GET  /v2/models/{name}[/versions/{version}]         a model's tensors, versions and labels
    GET  /v2/models/{name}[/versions/{version}]/ready   whether it is served
    POST /v2/models/{name}[/versions/{version}]/infer   a prediction

With the extensions `binary_tensor_data` and `classification`, and request bodies in gzip or deflate, so that
`tritonclient[http]` works unmodified. A prediction goes through the same `Predictor` as every other one.

| tensor | datatype | shape | |
|---|---|---|---|
| images | UINT8 | (n, height, width, channels) | input: images as the model takes them |
| image | BYTES | (n) or (n, 1) | input instead of it: image files of any size; in JSON each is written in base64 |
| probabilities | FP32 | (n, classes) | output; with classification=k it is BYTES (n, k): "probability:index:label" |
| labels | BYTES | (n) | output where it is asked for: the label of the most probable class |

Every error is {"error": message} with a status of 4xx for what the client did wrong.
"""
