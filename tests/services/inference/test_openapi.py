"""services.inference.openapi held against the real service by schemathesis, and against itself.

SCHEMATHESIS_SECONDS=300 fuzzes for that long, with another seed each time, instead of a few fixed examples.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from contracts.images import encode_png
from services.inference import openapi

SECONDS = int(os.environ.get("SCHEMATHESIS_SECONDS", "0"))
CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "unsupported_method", "allow_header_conformance"),
)

REFUSALS = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429]
"""schemathesis' own, and 413; without its 5xx."""


@pytest.mark.timeout(SECONDS + 240)
def test_schemathesis_finds_no_undocumented_answer_and_no_failure(
    http: httpx.Client, served: Any, tmp_path: Path
) -> None:
    config = tmp_path / "schemathesis.toml"
    # Made-up names would find nothing but 404s; and what is wrong in two ways may be refused for being too large.
    refusals = f"[checks.negative_data_rejection]\nexpected-statuses = {REFUSALS}\n"
    config.write_text(f'{refusals}[parameters]\nname = "shapes"\nversion = "1"\n')
    bound = ["--max-time", str(SECONDS)] if SECONDS else ["--max-examples", "3", "--seed", "1"]
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    options = ["--phases", "coverage,fuzzing", "--checks", ",".join(CHECKS), "--request-timeout", "20", "--no-color"]
    run = ["--config-file", str(config), "run", f"{http.base_url}/openapi.json", *options, *bound]
    ended = subprocess.run([*command, *run], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-8000:] + ended.stderr[-2000:]
    assert "Traceback" not in served.log.read_text()
    png = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
    assert http.post("/v1/predict", content=png).status_code == 200


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(inner)


def test_every_reference_leads_to_a_schema_that_is_used() -> None:
    document = openapi.document()
    named = {node["$ref"].removeprefix("#/components/schemas/") for node in nodes(document) if "$ref" in node}
    assert named == set(document["components"]["schemas"])


def test_every_operation_has_a_name_of_its_own() -> None:
    operations = [operation for path in openapi.document()["paths"].values() for operation in path.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names)) > 20
    assert all(operation["summary"] and operation["responses"] for operation in operations)


def test_what_bentoml_would_describe_is_described_here(http: httpx.Client) -> None:
    assert http.get("/docs.json").json() == http.get("/openapi.json").json() == openapi.document()
    (native,) = http.get("/schema.json").json()["routes"]
    form = openapi.document()["paths"][native["route"]]["post"]["requestBody"]["content"]["multipart/form-data"]
    assert form["schema"]["properties"].keys() == native["input"]["properties"].keys()
