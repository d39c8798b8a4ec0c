"""The OpenAPI document of every route; tests/services/inference/test_openapi.py holds the server to it.

The Open Inference Protocol's part is in v2/openapi.py.
"""

from __future__ import annotations

from typing import Any, Final

from services.inference.bento import FIELDS
from services.inference.v2 import openapi as v2
from services.inference.v2.metadata import API_VERSION

Json = dict[str, Any]

TEXT: Final[Json] = {"type": "string"}
NUMBER: Final[Json] = {"type": "number"}
WHOLE: Final[Json] = {"type": "integer"}
FLAG: Final[Json] = {"type": "boolean"}
_PROBLEM: Final = "application/problem+json"

_ALWAYS: Final = {
    "400": "The request does not follow HTTP (`malformed_request`).",
    "401": "API keys are asked for, and none that is known was sent (`unauthorized`).",
    "405": "The address has another method (`method_not_allowed`).",
    "431": "The head of the request is too large (`head_too_large`).",
    "500": "Our own fault; the log says which (`internal_error`).",
}
_PREDICTION: Final = {
    **_ALWAYS,
    "400": "The image is empty, truncated or corrupt (`undecodable_image`), or the form is (`malformed_body`), or the "
    "request does not follow HTTP (`malformed_request`).",
    "404": "No model has that name (`not_found`).",
    "408": "The body did not arrive in time (`slow_body`).",
    "413": "More bytes, pixels or parts than the limit; refused before they are read or decoded (`too_large`).",
    "415": "The bytes are no still JPEG, PNG, WebP, BMP or GIF (`not_an_image`).",
    "422": "`top_k`, another parameter, the name of a part or X-Stride-Variant is wrong (`invalid_request`).",
    "429": "The queue is full or the deadline passed; Retry-After says when to come again (`overloaded`).",
    "500": "The model failed on an image that was fine (`inference_failed`), or our own fault (`internal_error`).",
    "503": "No model is loaded yet (`no_model`), or the required GPU is not there (`device_unavailable`).",
}


def document() -> Json:
    named = "Classify images with a model by name"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Stride inference",
            "version": API_VERSION,
            "description": "Classifies images with the champions of MLflow's registry. A new champion is served within "
            "seconds; each answer comes from exactly one version and names it. Every way in gives the same answer. "
            "Where API keys are asked for, all but the pages and the health routes need one.",
        },
        "security": [{}, {"bearer": []}, {"key": []}],
        "paths": {
            "/v1/predict": {"post": _predict("predict", "Classify images with the default model", [_top_k()])},
            "/v1/models/{name}/predict": {"post": _predict("predictWith", named, [v2.model_name(), _top_k()])},
            "/predict": {"post": _native()},
            "/v1/models": {"get": _get("models", "List the models", "application/json", reference("Models"))},
            **v2.paths(),
            "/": {"get": _get("page", "A page to try it", "text/html", TEXT)},
            "/docs": {"get": _get("docs", "A page that shows this document", "text/html", TEXT)},
            "/openapi.json": {"get": _get("openapi", "This document", "application/json", {"type": "object"})},
            "/docs.json": {"get": _get("openapiAgain", "This document", "application/json", {"type": "object"})},
            "/schema.json": {"get": _hosted("schema", "What BentoML's clients ask for", "application/json")},
            "/metrics": {"get": _get("metrics", "Prometheus metrics", "text/plain", TEXT)},
            "/livez": {"get": _hosted("live", "Whether the process lives", "text/plain")},
            "/healthz": {"get": _hosted("liveToo", "Whether the process lives", "text/plain")},
            "/readyz": {"get": _ready()},
        },
        "components": {
            "schemas": {**_schemas(), **v2.schemas()},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
    }


def reference(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def structure(properties: Json, *, optional: tuple[str, ...] = ()) -> Json:
    return {"type": "object", "required": [key for key in properties if key not in optional], "properties": properties}


def _get(operation: str, summary: str, media: str, schema: Json) -> Json:
    return {
        "operationId": operation,
        "summary": summary,
        "parameters": [v2.request_id()],
        "responses": {
            "200": {"description": summary + ".", "headers": v2.id_header(), "content": {media: {"schema": schema}}},
            **_problems(_ALWAYS),
        },
    }


def _hosted(operation: str, summary: str, media: str) -> Json:
    """What BentoML answers: no request id comes back, but what lies before and behind it is ours."""
    schema: Json = {"type": "object"} if media == "application/json" else TEXT
    responses = {"200": {"description": summary + ".", "content": {media: {"schema": schema}}}}
    return {"operationId": operation, "summary": summary, "responses": {**responses, **_problems(_ALWAYS)}}


def _ready() -> Json:
    found = _hosted("ready", "Whether predictions are answered", "text/plain")
    why = "Not yet, or the service is ending; the text says why, or, where keys are asked for, where that is told."
    found["responses"]["503"] = {"description": why, "content": {"text/plain": {"schema": TEXT}}}
    return found


def _predict(operation: str, summary: str, parameters: list[Json]) -> Json:
    image = {"type": "string", "format": "binary"}
    form = {"type": "object", "required": ["image"], "properties": {"image": {"type": "array", "items": image}}}
    return {
        "operationId": operation,
        "summary": summary,
        "description": "The body is one image, whatever its Content-Type, or multipart/form-data with one or more "
        "parts named `image`. One bad image fails its request, and names its number.",
        "parameters": [*parameters, v2.variant(), v2.request_id()],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {"schema": form},
                "image/*": {"schema": image},
                "application/octet-stream": {"schema": image},
            },
        },
        "responses": _answered(),
    }


def _native() -> Json:
    image = {"type": "array", "items": {"type": "string", "format": "binary"}}
    fields = dict.fromkeys(FIELDS, TEXT)
    found = _predict("predictByForm", "Classify images as BentoML's clients ask for it", [])
    found["description"] = (
        "`bentoml.SyncHTTPClient(url).predict(image=Path(…), model=…, top_k=…)`: multipart/form-data with one or more "
        "parts named `image`; `model` and `top_k` may stand beside them, in JSON."
    )
    form = {"type": "object", "required": ["image"], "properties": {"image": image, **fields}}
    found["requestBody"]["content"]["multipart/form-data"]["schema"] = form
    return found


def _answered() -> Json:
    return {
        "200": {
            "description": "One prediction an image, in the order of the images.",
            "headers": v2.answer_headers(),
            "content": {"application/json": {"schema": reference("Predictions")}},
        },
        **_problems(_PREDICTION),
    }


def _problems(statuses: dict[str, str]) -> Json:
    return {status: v2.failed(status, what, {_PROBLEM: "Problem"}) for status, what in statuses.items()}


def _top_k() -> Json:
    return {
        "name": "top_k",
        "in": "query",
        "description": "How many classes to name, from 1 to all; 5 by default, or all where there are fewer.",
        "schema": {"type": "integer", "minimum": 1},
    }


def _schemas() -> Json:
    candidate = {"label": TEXT, "index": {"type": "integer", "minimum": 0}, "probability": NUMBER}
    top = {"type": "array", "items": reference("Candidate"), "description": "The best first."}
    name = {"name": TEXT, "version": TEXT, "provider": TEXT, "variant": {"const": "challenger"}}
    problem = {"type": TEXT, "title": TEXT, "status": WHOLE, "detail": TEXT, "code": TEXT}
    why = {"version": TEXT, "reason": TEXT, "step": TEXT, "since": NUMBER}
    shape = {"height": WHOLE, "width": WHOLE, "channels": WHOLE, "resize": TEXT, "background": WHOLE}
    version = {
        **dict.fromkeys(("version", "digest", "provider", "provider_reason", "precision", "precision_reason"), TEXT),
        "threads": WHOLE,
        "run_id": TEXT,
        "labels": {"type": "array", "items": TEXT},
        "input": structure(shape),
        "metrics": {"type": "object", "additionalProperties": NUMBER},
        "promoted_at": {**WHOLE, "description": "Milliseconds since 1970, 0 where unknown."},
        **dict.fromkeys(("loaded_at", "load_seconds", "golden_difference"), NUMBER),
    }
    challenger = {
        "percent": {**NUMBER, "description": "Of the requests that the challenger answers."},
        "shadow": {**FLAG, "description": "Whether it answers the champion's requests too, to be compared."},
        "note": _or_null(TEXT),
        "serving": _or_null(reference("Version")),
        "quarantined": _or_null(reference("Quarantined")),
    }
    model = {
        "name": TEXT,
        "default": FLAG,
        "serving": _or_null(reference("Version")),
        "follows": _or_null({**TEXT, "description": "The alias or the version that is served."}),
        "quarantined": _or_null(reference("Quarantined")),
        "missing": _or_null({**TEXT, "description": "Why nothing that is wanted is there."}),
        "challenger": _or_null(structure(challenger)),
    }
    models = {
        "models": {"type": "array", "items": structure(model)},
        **{key: _or_null(TEXT) for key in ("default", "refusal", "registry_error")},
    }
    return {
        "Candidate": structure(candidate),
        "Prediction": structure({**candidate, "top": top}),
        "Predictions": structure(
            {
                "model": structure(name, optional=("variant",)),
                "predictions": {"type": "array", "items": reference("Prediction")},
            }
        ),
        "Version": structure(version),
        "Quarantined": structure(why),
        "Models": structure(models),
        "Problem": structure(problem),
    }


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}
