"""The OpenAPI document's part below /v2, and the pieces that every route shares."""

from __future__ import annotations

from typing import Any, Final

from services.inference.v2.metadata import IMAGE, IMAGES, LABELS, PROBABILITIES

Json = dict[str, Any]
_TEXT: Final[Json] = {"type": "string"}
_PROBLEM: Final = {"application/problem+json": "Problem"}
"""What is refused before it is known to be a request of this protocol."""
_BARE: Final = {"application/json": "InferenceError"}

_ALWAYS: Final = {
    "401": "API keys are asked for, and none that is known was sent.",
    "405": "The address has another method.",
    "500": "Our own fault; the log says which.",
}
_MODEL: Final = {
    **_ALWAYS,
    "404": "No model has that name, or none of its served versions has that number.",
    "503": "No model is loaded yet, or the required GPU is not there.",
}
_INFER: Final = {
    **_MODEL,
    "408": "The body did not arrive in time.",
    "413": "More bytes, pixels or images than the limit, packed or unpacked, or a JSON that is too large.",
    "415": "A file is no still JPEG, PNG, WebP, BMP or GIF, or the Content-Encoding is neither gzip nor deflate.",
    "422": "X-Stride-Variant is neither champion nor challenger.",
    "429": "The queue is full or the deadline passed; Retry-After says when to come again.",
}
_BAD: Final = "A name, datatype, shape, size or value is wrong, the body is no JSON, or a file cannot be decoded."


def paths() -> Json:
    found: Json = {
        "/v2": {"get": _get("server", "The server", [], "Server", _ALWAYS)},
        "/v2/health/live": {"get": _get("serverLive", "Whether the server lives", [], "Live", _ALWAYS)},
        "/v2/health/ready": {"get": _get("serverReady", "Whether predictions are answered", [], "Ready", _READY)},
    }
    for below, more, suffix in (("", [], ""), ("/versions/{version}", [_version()], "Version")):
        at = f"/v2/models/{{name}}{below}"
        parameters = [model_name(), *more]
        found[at] = {"get": _get(f"model{suffix}", "A model's tensors", parameters, "ModelMetadata", _MODEL)}
        ready = _get(f"modelReady{suffix}", "Whether a model is served", parameters, "ModelReady", _MODEL)
        found[f"{at}/ready"] = {"get": ready}
        found[f"{at}/infer"] = {"post": _infer(f"infer{suffix}", parameters)}
    return found


_READY: Final = {**_ALWAYS, "503": "Not yet, or the service is ending; the error says why."}


def model_name() -> Json:
    return {"name": "name", "in": "path", "required": True, "schema": _TEXT, "description": "The registered model."}


def request_id() -> Json:
    what = "Comes back with the answer where it is 1 to 128 of A-Z a-z 0-9 . _ : -, else one is made up."
    return {"name": "X-Request-ID", "in": "header", "schema": _TEXT, "description": what}


def variant() -> Json:
    what = "Which of the two answers where a challenger is served beside the champion."
    schema = {**_TEXT, "enum": ["champion", "challenger"]}
    return {"name": "X-Stride-Variant", "in": "header", "schema": schema, "description": what}


def id_header() -> Json:
    return {"X-Request-ID": {"required": True, "schema": _TEXT}}


def answer_headers() -> Json:
    which = {name: {"required": True, "schema": _TEXT} for name in ("X-Stride-Provider", "X-Stride-Version")}
    either = {"required": True, "schema": {**_TEXT, "enum": ["champion", "challenger"]}}
    return {**id_header(), **which, "X-Stride-Variant": either}


def failed(status: str, what: str, schemas: dict[str, str]) -> Json:
    """The response for a status: its media types and the schemas of each."""
    content = {media: {"schema": {"$ref": f"#/components/schemas/{name}"}} for media, name in schemas.items()}
    headers = {
        "401": {"WWW-Authenticate": {"required": True, "schema": _TEXT}},
        "405": {"Allow": {"required": True, "schema": _TEXT}},
        "429": {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}},
        "503": {"Retry-After": {"required": True, "schema": {"type": "integer", "minimum": 1}}},
    }.get(status, {})
    return {"description": what, "headers": headers, "content": content}


def _version() -> Json:
    what = "A version that is served: the champion's or the challenger's."
    return {"name": "version", "in": "path", "required": True, "schema": _TEXT, "description": what}


def _failures(statuses: dict[str, str], *, bad: bool = False) -> Json:
    malformed = "The request does not follow HTTP."
    both = {**_BARE, **_PROBLEM} if bad else _PROBLEM
    return {
        **{status: failed(status, what, _BARE) for status, what in statuses.items()},
        "400": failed("400", f"{_BAD} Or: {malformed[0].lower()}{malformed[1:]}" if bad else malformed, both),
        "431": failed("431", "The head of the request is too large.", _PROBLEM),
    }


def _get(operation: str, summary: str, parameters: list[Json], schema: str, statuses: dict[str, str]) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {
        "operationId": f"v2{operation[0].upper()}{operation[1:]}",
        "summary": summary,
        "parameters": [*parameters, request_id()],
        "responses": {
            "200": {"description": f"{summary}.", "headers": id_header(), "content": content},
            **_failures(statuses),
        },
    }


def _infer(operation: str, parameters: list[Json]) -> Json:
    length = {
        "name": "Inference-Header-Content-Length",
        "in": "header",
        "schema": {"type": "integer", "minimum": 0},
        "description": "The bytes of the JSON, where binary tensors follow it. With 0 the whole body is the tensor "
        f"`{IMAGES}`, and the answer is binary too.",
    }
    packed = {
        "name": "Content-Encoding",
        "in": "header",
        "schema": {**_TEXT, "enum": ["identity", "gzip", "deflate"]},
        "description": "How the body is packed.",
    }
    binary = {"schema": {**_TEXT, "format": "binary"}}
    answer = {"schema": {"$ref": "#/components/schemas/InferenceResponse"}}
    json_bytes = {"schema": {"type": "integer"}, "description": "The bytes of the JSON, where tensors follow it."}
    return {
        "operationId": f"v2{operation[0].upper()}{operation[1:]}",
        "summary": "Classify images given as tensors",
        "description": f"One input: `{IMAGES}`, UINT8 (n, height, width, channels) as the model takes them; or "
        f"`{IMAGE}`, BYTES (n) or (n, 1), image files of any size, in JSON each in base64. Outputs: `{PROBABILITIES}`, "
        f"FP32 (n, classes), or with the parameter `classification` the best classes as BYTES (n, k) of "
        f'"probability:index:label"; and, where asked for, `{LABELS}`, BYTES (n), the most probable label of each.',
        "parameters": [*parameters, length, packed, variant(), request_id()],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}},
                "application/octet-stream": {**binary},
            },
        },
        "responses": {
            "200": {
                "description": "The outputs; as octets where at least one is binary: the JSON, then the tensors.",
                "headers": {**answer_headers(), "Inference-Header-Content-Length": json_bytes},
                "content": {"application/json": answer, "application/octet-stream": binary},
            },
            **_failures(_INFER, bad=True),
        },
    }


def schemas() -> Json:
    parameters = {"type": "object", "additionalProperties": True}
    sides = {"type": "array", "items": {"type": "integer"}}
    described = {"name": _TEXT, "datatype": _TEXT, "shape": sides}
    tensors = {"type": "array", "items": {"$ref": "#/components/schemas/TensorMetadata"}}
    given = {
        "name": {**_TEXT, "enum": [IMAGES, IMAGE]},
        "datatype": {**_TEXT, "enum": ["UINT8", "BYTES"]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "maxItems": 4},
        "parameters": {
            "type": "object",
            "properties": {"binary_data_size": {"type": "integer", "minimum": 0}},
        },
        "data": {"type": "array", "description": "Flat, or nested as the shape; without it, binary_data_size."},
    }
    wanted = {
        "name": {**_TEXT, "enum": [PROBABILITIES, LABELS]},
        "parameters": {
            "type": "object",
            "properties": {"binary_data": {"type": "boolean"}, "classification": {"type": "integer", "minimum": 0}},
        },
    }
    request = {
        "id": _TEXT,
        "parameters": {"type": "object", "properties": {"binary_data_output": {"type": "boolean"}}},
        "inputs": {"type": "array", "items": _structure(given, "parameters", "data"), "minItems": 1, "maxItems": 1},
        "outputs": {"type": "array", "items": _structure(wanted, "parameters"), "maxItems": 2},
    }
    output = {**described, "parameters": parameters, "data": {"type": "array"}}
    return {
        "InferenceError": _structure({"error": _TEXT}),
        "InferenceRequest": _structure(request, "id", "parameters", "outputs"),
        "InferenceResponse": _structure(
            {
                "model_name": _TEXT,
                "model_version": _TEXT,
                "id": _TEXT,
                "outputs": {"type": "array", "items": _structure(output, "parameters", "data")},
            },
            "id",
        ),
        "Live": _structure({"live": {"const": True}}),
        "ModelMetadata": _structure(
            {
                "name": _TEXT,
                "versions": {"type": "array", "items": _TEXT},
                "platform": _TEXT,
                "inputs": tensors,
                "outputs": tensors,
                "parameters": parameters,
            }
        ),
        "ModelReady": _structure({"name": _TEXT, "ready": {"const": True}}),
        "Ready": _structure({"ready": {"const": True}}),
        "Server": _structure({"name": _TEXT, "version": _TEXT, "extensions": {"type": "array", "items": _TEXT}}),
        "TensorMetadata": _structure(described),
    }


def _structure(properties: Json, *optional: str) -> Json:
    return {"type": "object", "required": [key for key in properties if key not in optional], "properties": properties}
