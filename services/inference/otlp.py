"""Spans to an OpenTelemetry collector: OTLP over HTTP, as protobuf. What it needs is imported when a collector is named.

| variable | meaning | default |
|---|---|---|
| OTEL_EXPORTER_OTLP_ENDPOINT | the collector's base address (http://collector:4318); without one nothing is exported | |
| OTEL_EXPORTER_OTLP_TRACES_ENDPOINT | the whole address for traces, instead | |
| OTEL_EXPORTER_OTLP_HEADERS | further headers, `name=value,…`, percent-encoded | |
| OTEL_SERVICE_NAME | how the collector shows this service | stride-inference |
| OTEL_RESOURCE_ATTRIBUTES | further attributes of the service, `name=value,…` | |
| OTEL_TRACES_SAMPLER | always_on, always_off or traceidratio; after `parentbased_` the caller decides, if there is one | parentbased_always_on |
| OTEL_TRACES_SAMPLER_ARG | for traceidratio: the part of the traces, 0 to 1 | 1 |
| OTEL_SDK_DISABLED | true: export nothing all the same | false |
"""  # noqa: E501 - a table

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote

from contracts.errors import RecipeError
from services.inference.tracing import Ended, Trace, Tracer

_TIMEOUT_S: Final = 10.0
_PROTOCOL: Final = "http/protobuf"


@dataclass(frozen=True, kw_only=True, slots=True)
class Collector:
    """Where spans go, as whose, and how many."""

    address: str
    headers: dict[str, str]
    resource: dict[str, str]
    ratio: float
    follow: bool
    """A caller's sampling decision counts."""


def read(environment: Mapping[str, str] | None = None) -> Collector | None:
    """The collector that the environment names; None where it names none.

    Raises:
        RecipeError: a variable cannot be followed.
    """
    env = os.environ if environment is None else environment
    whole = env.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or ""
    base = env.get("OTEL_EXPORTER_OTLP_ENDPOINT") or ""
    off = (env.get("OTEL_SDK_DISABLED") or "").lower() == "true" or env.get("OTEL_TRACES_EXPORTER") == "none"
    if off or not (whole or base):
        return None
    name, address = ("TRACES_ENDPOINT", whole) if whole else ("ENDPOINT", base)
    if not re.fullmatch(r"https?://[^/\s]+(/\S*)?", address):
        raise RecipeError(
            f"OTEL_EXPORTER_OTLP_{name} is {address!r}; give an http:// or https:// address, or unset it."
        )
    protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL") or _PROTOCOL
    if protocol != _PROTOCOL:
        raise RecipeError(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}; only {_PROTOCOL} (port 4318) is spoken here.")
    ratio, follow = _sampling(env)
    resource = _pairs(env, "OTEL_RESOURCE_ATTRIBUTES")
    resource["service.name"] = env.get("OTEL_SERVICE_NAME") or resource.get("service.name") or "stride-inference"
    resource.setdefault("service.instance.id", str(os.getpid()))
    return Collector(
        address=whole or f"{base.rstrip('/')}/v1/traces",
        headers=_pairs(env, "OTEL_EXPORTER_OTLP_HEADERS") | _pairs(env, "OTEL_EXPORTER_OTLP_TRACES_HEADERS"),
        resource=resource,
        ratio=ratio,
        follow=follow,
    )


def tracer(collector: Collector, *, dropped: Callable[[int], None] = lambda _: None) -> Tracer:
    """A running tracer that sends to `collector`; `dropped` is told how many requests' spans were lost."""
    import urllib3

    # What does not arrive after that is dropped: spans are worth less than the memory to keep them.
    retries = urllib3.Retry(
        total=2, backoff_factor=0.5, status_forcelist=(429, 502, 503, 504), allowed_methods=None, redirect=0
    )
    pool = urllib3.PoolManager(retries=retries, timeout=_TIMEOUT_S)
    headers = {**collector.headers, "Content-Type": "application/x-protobuf"}
    # Spans carry the wall clock, requests a clock that never jumps.
    epoch = time.time() - time.perf_counter()

    def export(ended: list[Ended]) -> None:
        body = serialise(ended, collector.resource, epoch)
        answer = pool.request("POST", collector.address, body=body, headers=headers)
        if answer.status >= 300:
            raise OSError(f"the collector answered {answer.status}")

    return Tracer(export, ratio=collector.ratio, follow=collector.follow, dropped=dropped)


def serialise(ended: list[Ended], resource: Mapping[str, str], epoch: float) -> bytes:
    """An ExportTraceServiceRequest with up to four spans a request.

    Args:
        epoch: the wall clock's time, in seconds, when time.perf_counter was 0.
    """
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    request = ExportTraceServiceRequest()
    group = request.resource_spans.add()
    _attributes(group.resource.attributes, resource)
    scope = group.scope_spans.add()
    scope.scope.name = "services.inference"
    for one in ended:
        _spans(scope.spans, one, epoch)
    serialised: bytes = request.SerializeToString()
    return serialised


def _spans(spans: Any, one: Ended, epoch: float) -> None:
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

    trace = one.trace
    route = _route(one)
    span = _span(spans, trace, f"{one.method} {route}", epoch + one.started, epoch + one.ended)
    span.span_id = own = bytes.fromhex(trace.span_id.decode())
    span.parent_span_id = bytes.fromhex(trace.parent_id.decode())
    span.kind = Span.SPAN_KIND_SERVER
    about: dict[str, str | int] = {"http.request.method": one.method, "http.route": route}
    if trace.status:  # none where the client had left
        about["http.response.status_code"] = trace.status
    if trace.model:
        about |= {"stride.model": trace.model, "stride.version": trace.version, "stride.rows": trace.rows}
    if trace.code:
        about["error.type"] = trace.code
    if trace.status >= 500:  # by the conventions for servers, what the client did wrong is no error of the span
        span.status.code = Status.STATUS_CODE_ERROR
    _attributes(span.attributes, about)
    for name, begun, done in (
        ("decode", trace.decoding, trace.decoded),
        ("queue", trace.submitted, trace.inferring),
        ("infer", trace.inferring, trace.inferred),
    ):
        if begun and done:
            inner = _span(spans, trace, name, epoch + begun, epoch + done)
            inner.span_id, inner.parent_span_id, inner.kind = os.urandom(8), own, Span.SPAN_KIND_INTERNAL


def _route(one: Ended) -> str:
    """The path with its names taken out, as collectors group by it."""
    if one.trace.code in ("not_found", "unauthorized"):  # who has no key is not told what stands where
        return "other"
    path = re.sub(r"(?<=/models/)[^/]+", "{name}", one.path)
    return re.sub(r"(?<=/versions/)[^/]+", "{version}", path)


def _span(spans: Any, trace: Trace, name: str, begun_s: float, ended_s: float) -> Any:
    return spans.add(
        trace_id=bytes.fromhex(trace.trace_id.decode()),
        name=name,
        start_time_unix_nano=int(begun_s * 1e9),
        end_time_unix_nano=int(ended_s * 1e9),
    )


def _attributes(kept: Any, values: Mapping[str, str] | Mapping[str, str | int]) -> None:
    for name, value in values.items():
        attribute = kept.add(key=name)
        if isinstance(value, int):
            attribute.value.int_value = value
        else:
            attribute.value.string_value = value


def _sampling(env: Mapping[str, str]) -> tuple[float, bool]:
    given = env.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    kind = given.removeprefix("parentbased_")
    if kind not in ("always_on", "always_off", "traceidratio"):
        wanted = "always_on, always_off or traceidratio, or one of them after parentbased_"
        raise RecipeError(f"OTEL_TRACES_SAMPLER is {given!r}; set it to {wanted}.")
    text = env.get("OTEL_TRACES_SAMPLER_ARG") or "1"
    try:
        ratio = float(text)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        raise RecipeError(f"OTEL_TRACES_SAMPLER_ARG is {text!r}; set it to a number from 0 to 1.")
    return {"always_on": 1.0, "always_off": 0.0}.get(kind, ratio), kind != given


def _pairs(env: Mapping[str, str], name: str) -> dict[str, str]:
    """`name=value,…` with percent-encoded values, as OpenTelemetry's variables are written."""
    pairs = {}
    for part in filter(None, (env.get(name) or "").split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise RecipeError(f"{name} holds a part without '='; write name=value, separated by commas.")
        pairs[key.strip()] = unquote(value.strip())
    return pairs
