"""The client of the training service, for `stride jobs`.

| variable | meaning | default |
|---|---|---|
| STRIDE_JOBS_URL | where the service is | http://127.0.0.1:8000 |
| STRIDE_JOBS_KEY | the API key, where it asks for one | none is sent |
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final, Self

import httpx

from contracts.errors import RequestError, StrideError

_TIMEOUT: Final = httpx.Timeout(30.0, connect=5.0)
_PATIENCE_S: Final = 60.0
"""How long a followed log waits for a service that is being started again."""


class ServiceAway(StrideError):
    """The training service does not answer."""

    status, code = 503, "service_away"


class JobsClient:
    """The jobs of one service. Every method raises what the service says: RequestError, or ServiceAway without one."""

    def __init__(self, url: str | None = None, *, key: str | None = None) -> None:
        self.url = (url or os.environ.get("STRIDE_JOBS_URL") or "http://127.0.0.1:8000").rstrip("/")
        key = key or os.environ.get("STRIDE_JOBS_KEY")
        self._client = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT,
            trust_env=not self.url.startswith(("http://127.0.0.1", "http://localhost")),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def submit(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> dict[str, Any]:
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._ask("POST", "/v1/jobs", json=dict(body), headers=headers)

    def jobs(self, *, state: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """The newest jobs."""
        parameters = {"limit": str(limit), **({"state": state} if state else {})}
        found: list[dict[str, Any]] = self._ask("GET", "/v1/jobs", params=parameters)["jobs"]
        return found

    def job(self, job_id: str) -> dict[str, Any]:
        return self._ask("GET", f"/v1/jobs/{_segment(job_id)}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self._ask("DELETE", f"/v1/jobs/{_segment(job_id)}")

    def log(self, job_id: str, *, follow: bool) -> Iterator[bytes]:
        """A log's bytes; followed, until the job has ended, also over a restart of the service."""
        offset, lost = 0, None
        while True:
            try:
                for piece in self._pieces(job_id, offset, follow=follow):
                    offset, lost = offset + len(piece), None
                    yield piece
                if not follow or self.job(job_id)["ended"] is not None:
                    return
            except ServiceAway:
                lost = lost or time.monotonic()
                if not follow or time.monotonic() - lost > _PATIENCE_S:
                    raise
            time.sleep(0.5)

    def _pieces(self, job_id: str, offset: int, *, follow: bool) -> Iterator[bytes]:
        path = f"/v1/jobs/{_segment(job_id)}/logs"
        parameters = {"follow": str(int(follow)), "offset": str(offset)}
        # A job may say nothing for long; that the connection is gone is told by the system.
        patient = httpx.Timeout(30.0, connect=5.0, read=None if follow else 30.0)
        try:
            with self._client.stream("GET", path, params=parameters, timeout=patient) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise self._refusal(answer)
                yield from answer.iter_bytes()
        except httpx.HTTPError as error:
            raise self._away(error) from error

    def _ask(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        try:
            answer = self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._away(error) from error
        if answer.status_code not in (200, 201, 202):
            raise self._refusal(answer)
        content: dict[str, Any] = answer.json()
        return content

    def _refusal(self, answer: httpx.Response) -> StrideError:
        try:
            detail = str(answer.json()["detail"])
        except (ValueError, KeyError, TypeError):
            detail = f"{self.url} answers HTTP {answer.status_code}, which no training service does; see the address."
        return ServiceAway(detail) if answer.status_code >= 500 else RequestError(detail)

    def _away(self, error: httpx.HTTPError) -> ServiceAway:
        reason = str(error) or type(error).__name__
        advice = "start it with `python -m pipelines.training_service`, or set STRIDE_JOBS_URL"
        return ServiceAway(f"no answer from the training service at {self.url} ({reason}); {advice}.")


def _segment(job_id: str) -> str:
    if not job_id.isalnum():
        raise RequestError(f"job {job_id!r} is not an id; `stride jobs list` shows them.")
    return job_id
