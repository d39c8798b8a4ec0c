"""services.inference.otlp: a real collector gets the spans of a real service, in the protocol's own messages."""

from __future__ import annotations

import http.server
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from contracts.errors import RecipeError
from contracts.images import encode_png
from services.inference import otlp
from services.inference.tracing import Ended, Trace

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PNG = encode_png(np.zeros((8, 8, 1), dtype=np.uint8))
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"


class Collector:
    """What an OpenTelemetry collector does with a POST: it takes it, or answers `status`."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str], ExportTraceServiceRequest]] = []
        self.status: list[int] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = outer.status.pop() if outer.status else 200
                if status == 200:
                    message = ExportTraceServiceRequest.FromString(body)
                    outer.requests.append((self.path, dict(self.headers), message))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def spans(self) -> list[Span]:
        return [
            span
            for _, _, message in self.requests
            for group in message.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]

    def wait(self, spans: int) -> list[Span]:
        until = time.monotonic() + 30
        while len(self.spans()) < spans:
            assert time.monotonic() < until, self.spans()
            time.sleep(0.05)
        return self.spans()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {
        one.key: one.value.int_value if one.value.HasField("int_value") else one.value.string_value
        for one in span.attributes
    }


def test_a_prediction_becomes_four_spans_in_the_callers_trace(
    start_service: Callable[..., Any], tiny: Any, tmp_path: Any, collector: Collector
) -> None:
    service = start_service(
        stored={"shapes": tiny(1).bundle(tmp_path / "b")},
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.address,
        OTEL_EXPORTER_OTLP_HEADERS="x-tenant=a%20b",
        OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test",
    )
    service.wait()
    parent = f"00-{TRACE}-{SPAN}-01"
    before = time.time_ns()
    answer = httpx.post(f"{service.url}/v1/models/shapes/predict", content=PNG, headers={"traceparent": parent})
    after = time.time_ns()
    assert answer.status_code == 200
    spans = {span.name: span for span in collector.wait(4)}
    request = spans["POST /v1/models/{name}/predict"]
    assert spans.keys() == {request.name, "decode", "queue", "infer"}
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    assert request.parent_span_id.hex() == SPAN
    assert answer.headers["traceresponse"] == f"00-{TRACE}-{request.span_id.hex()}-01"
    assert request.kind == Span.SPAN_KIND_SERVER
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{name}/predict",
        "http.response.status_code": 200,
        "stride.model": "shapes",
        "stride.version": "1",
        "stride.rows": 1,
    }
    order = [request.start_time_unix_nano]
    for name in ("decode", "queue", "infer"):
        assert spans[name].parent_span_id == request.span_id
        order += [spans[name].start_time_unix_nano, spans[name].end_time_unix_nano]
    order.append(request.end_time_unix_nano)
    assert order == sorted(order)
    slack = 50_000_000  # the wall clock is read once, at the start
    assert before - slack < order[0] <= order[-1] < after + slack
    path, headers, message = collector.requests[0]
    assert path == "/v1/traces"
    assert {key.lower(): value for key, value in headers.items()}["x-tenant"] == "a b"
    resource = attributes(message.resource_spans[0].resource)
    assert resource["service.name"] == "stride-inference"
    assert resource["deployment.environment"] == "test"

    # A refusal names its code and is no error of ours; a trace that the caller does not sample is not recorded.
    unsampled = {"traceparent": parent[:-2] + "00"}
    assert httpx.post(f"{service.url}/v1/predict", content=PNG, headers=unsampled).headers["traceresponse"][-2:] == "00"
    assert httpx.post(f"{service.url}/v1/predict", content=b"text").status_code == 415
    refused = collector.wait(5)[4]
    assert attributes(refused)["error.type"] == "not_an_image"
    assert refused.status.code == Status.STATUS_CODE_UNSET
    assert refused.trace_id.hex() != TRACE
    assert len(collector.spans()) == 5

    # What is left when the service ends is sent.
    assert httpx.post(f"{service.url}/v1/predict", content=PNG).status_code == 200
    assert service.terminate() == 0
    assert len(collector.spans()) == 9


def test_a_collector_that_is_away_fails_no_request_and_is_told_of_once(
    start_service: Callable[..., Any], tiny: Any, tmp_path: Any
) -> None:
    service = start_service(
        stored={"shapes": tiny(1).bundle(tmp_path / "b")}, OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9"
    )
    service.wait()
    until = time.monotonic() + 60
    while "stride_traces_dropped_total 0.0" in (text := httpx.get(f"{service.url}/metrics").text):
        assert httpx.post(f"{service.url}/v1/predict", content=PNG).status_code == 200
        assert time.monotonic() < until
        time.sleep(0.1)
    assert "stride_traces_dropped_total" in text
    assert service.log.read_text().count("traces_not_sent") == 1


def test_an_answer_that_asks_for_patience_is_sent_again(collector: Collector) -> None:
    found = otlp.read({ENDPOINT: collector.address})
    assert found is not None
    collector.status = [503]
    dropped: list[int] = []
    tracer = otlp.tracer(found, dropped=dropped.append)
    tracer.end(tracer.begin([]), "POST", "/v1/predict", 1.0)
    tracer.close(20)
    assert (len(collector.spans()), dropped) == (1, [])
    collector.status = [400]  # but not one that says no
    tracer = otlp.tracer(found, dropped=dropped.append)
    tracer.end(tracer.begin([]), "POST", "/v1/predict", 1.0)
    tracer.close(20)
    assert (len(collector.spans()), dropped) == (1, [1])


def test_nothing_is_exported_unless_it_is_asked_for() -> None:
    assert otlp.read({}) is None
    assert otlp.read({ENDPOINT: ""}) is None
    assert otlp.read({ENDPOINT: "http://c:4318", "OTEL_SDK_DISABLED": "true"}) is None
    assert otlp.read({ENDPOINT: "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}) is None


def test_the_environment_is_read_as_opentelemetry_writes_it() -> None:
    found = otlp.read({ENDPOINT: "http://c:4318/", "OTEL_SERVICE_NAME": "a", "OTEL_RESOURCE_ATTRIBUTES": "x=1,y=%2C"})
    assert found is not None
    assert (found.address, found.ratio, found.follow) == ("http://c:4318/v1/traces", 1.0, True)
    assert found.resource.items() >= {("service.name", "a"), ("x", "1"), ("y", ",")}
    whole = otlp.read({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/x", "OTEL_TRACES_SAMPLER": "always_off"})
    assert whole is not None
    assert (whole.address, whole.ratio, whole.follow) == ("https://c/x", 0.0, False)
    some = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.25"}
    part = otlp.read({ENDPOINT: "http://c", **some})
    assert part is not None
    assert (part.ratio, part.follow) == (0.25, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (ENDPOINT, "c:4318"),
        (ENDPOINT, "ftp://c"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_TRACES_SAMPLER_ARG", "2"),
        ("OTEL_TRACES_SAMPLER_ARG", "nan"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "token"),
    ],
)
def test_a_variable_that_cannot_be_followed_is_named(name: str, value: str) -> None:
    with pytest.raises(RecipeError, match=name):
        otlp.read({ENDPOINT: "http://c:4318", name: value})


def test_a_bad_variable_ends_the_start_with_one_sentence_of_opentelemetry() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "import services.inference.service"],
        env={ENDPOINT: "nowhere", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert re.fullmatch(r"stride: OTEL_EXPORTER_OTLP_ENDPOINT is 'nowhere'; .*\.\n", ended.stderr), ended.stderr


def test_without_a_collector_nothing_of_the_protocol_is_imported() -> None:
    script = (
        "import sys, services.inference.app\n"
        "print([m for m in sys.modules if m.startswith(('opentelemetry.proto', 'opentelemetry.sdk', 'urllib3'))])"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize("code", ["not_found", "unauthorized"])
def test_an_address_that_is_not_known_to_stand_for_something_names_no_span(code: str) -> None:
    trace = Trace(TRACE.encode(), b"", sampled=True)
    trace.code, trace.status = code, 401
    request = ExportTraceServiceRequest.FromString(otlp.serialise([Ended(trace, "POST", "/v1/a1b2c3", 1, 2)], {}, 0))
    (span,) = request.resource_spans[0].scope_spans[0].spans
    assert span.name == "POST other"
