"""The OpenAPI document of our routes."""

from __future__ import annotations

from typing import Any

_ERRORS = {
    "400": "The image is empty, truncated or corrupt (`undecodable_image`), or the form is (`malformed_body`).",
    "404": "No model has that name (`not_found`).",
    "405": "The method is not POST (`method_not_allowed`).",
    "408": "The body did not arrive in time (`slow_body`).",
    "413": "More bytes, pixels or parts than the limit; refused before they are read or decoded (`too_large`).",
    "415": "The bytes are no still JPEG, PNG, WebP, BMP or GIF (`not_an_image`).",
    "422": "`top_k`, another parameter or the name of a part is wrong (`invalid_request`).",
    "429": "The queue is full or the deadline passed; Retry-After says when to come again (`overloaded`).",
    "500": "The model failed on an image that was fine (`inference_failed`).",
    "503": "No model is loaded yet (`no_model`), or the required GPU is not there (`device_unavailable`).",
}


def document() -> dict[str, Any]:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
    named = "Classify images with a model by name"
    models = "The served models, their versions, labels and provider; versions that were refused, with the reason."
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stride inference",
            "version": "1",
            "description": "Classifies images with the champions of MLflow's registry. A new champion is served within "
            "seconds; each answer comes from exactly one version and names it.",
        },
        "paths": {
            "/v1/predict": {"post": _predict("predict", "Classify images with the default model", [])},
            "/v1/models/{name}/predict": {"post": _predict("predictWith", named, [name])},
            "/v1/models": {"get": _get("models", "List the models", models, "application/json", {"type": "object"})},
            "/": {"get": _get("page", "A page to try it", "The page.", "text/html", {"type": "string"})},
            "/metrics": {
                "get": _get("metrics", "Prometheus metrics", "Text format.", "text/plain", {"type": "string"})
            },
            "/livez": {"get": _get("live", "Whether the process lives", "It does.", "text/plain", {"type": "string"})},
            "/readyz": {"get": _ready()},
        },
        "components": {"schemas": _schemas()},
    }


def _get(operation: str, summary: str, description: str, media: str, schema: dict[str, Any]) -> dict[str, Any]:
    response = {"description": description, "content": {media: {"schema": schema}}}
    return {"operationId": operation, "summary": summary, "responses": {"200": response}}


def _ready() -> dict[str, Any]:
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": "ready",
        "summary": "Whether predictions are answered",
        "responses": {
            "200": {"description": "The default model has answered its golden images rightly.", "content": text},
            "503": {"description": "Not yet, or the service is ending; the text says why.", "content": text},
        },
    }


def _predict(operation: str, summary: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    top_k = {
        "name": "top_k",
        "in": "query",
        "description": "How many classes to name, from 1 to all; 5 by default, or all where there are fewer.",
        "schema": {"type": "integer", "minimum": 1},
    }
    image = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["image"], "properties": {"image": {"type": "array", "items": image}}}
    request_id = {"name": "X-Request-ID", "in": "header", "schema": {"type": "string"},
                  "description": "Comes back with the answer; made up when it is not given."}  # fmt: skip
    problem = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        "operationId": operation,
        "summary": summary,
        "description": "The body is one image, whatever its Content-Type, or multipart/form-data with one or more "
        "parts named `image`. One bad image fails its request, and names its number.",
        "parameters": [*parameters, top_k, request_id],
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": form}, "image/*": {"schema": image}},
        },
        "responses": {
            "200": {
                "description": "One prediction an image, in the order of the images.",
                "headers": {
                    "X-Request-ID": {"schema": {"type": "string"}},
                    "X-Stride-Provider": {"schema": {"type": "string"}},
                    "X-Stride-Version": {"schema": {"type": "string"}},
                },
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Predictions"}}},
            },
            **{status: {"description": what, "content": problem} for status, what in _ERRORS.items()},
        },
    }


def _schemas() -> dict[str, Any]:
    text, number, whole = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    candidate = {"label": text, "index": whole, "probability": number}
    top = {"type": "array", "items": {"$ref": "#/components/schemas/Candidate"}, "description": "The best first."}
    return {
        "Candidate": _object(candidate),
        "Prediction": _object({**candidate, "top": top}),
        "Predictions": _object(
            {
                "model": _object({"name": text, "version": text, "provider": text}),
                "predictions": {"type": "array", "items": {"$ref": "#/components/schemas/Prediction"}},
            }
        ),
        "Problem": _object({"type": text, "title": text, "status": whole, "detail": text, "code": text}),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}
