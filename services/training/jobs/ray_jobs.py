"""Ray's Jobs API over HTTP: submit, ask, stop. No Ray is imported, which would cost seconds and 100 MB."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import httpx

from services.training.jobs.errors import BadAnswer, RayError
from services.training.jobs.job import Share

Status = Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
_TIMEOUT: Final = httpx.Timeout(30.0, connect=3.0)
"""Ray waits for its own agent for a while before it answers a submission."""
_FINAL: Final = frozenset({400, 404, 405, 413, 422})
"""The answers to a question that is itself wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """What Ray knows of a submission."""

    status: Status
    exit_code: int | None
    """Of the process; None while it runs, and where Ray did not see its end."""
    reason: str | None
    """Why it failed, where it was not the process that did: Ray's error type."""
    message: str


class RayJobs:
    """The jobs of one Ray cluster.

    Every method raises RayError where the cluster does not answer; BadAnswer where it does, and not as it should, which
    may be so for one job alone.

    Args:
        address: Of its dashboard, http://HOST:PORT.
        token: What RAY_AUTH_MODE=token asks for.
    """

    def __init__(self, address: str, token: str) -> None:
        self.address = address
        self._client = httpx.AsyncClient(
            base_url=address,
            headers={"Authorization": f"Bearer {token}"},
            timeout=_TIMEOUT,
            trust_env=not address.startswith("http://127.0.0.1:"),  # no proxy is asked for this machine
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def answers(self) -> None:
        """Raise RayError unless the cluster answers, and answers to its token alone."""
        await self._ask("GET", "/api/version")
        try:
            open_door = await self._client.get("/api/jobs/", headers={"Authorization": ""})
        except httpx.HTTPError as error:
            raise self._away(error) from error
        if open_door.status_code not in (401, 403):
            raise RayError(
                f"Ray at {self.address} answers without a token (HTTP {open_door.status_code}): whoever reaches it can "
                "run commands; start it with RAY_AUTH_MODE=token."
            )

    async def submit(self, submission: str, entrypoint: str, *, share: Share, environment: Mapping[str, str]) -> None:
        """Hand a shell command over; one that Ray has already under this name is left as it is."""
        content = {
            "entrypoint": entrypoint,
            "submission_id": submission,
            "runtime_env": {"env_vars": dict(environment)},
            "entrypoint_num_cpus": share.cpus,
            "entrypoint_num_gpus": share.gpus,
        }
        answer = await self._send("POST", "/api/jobs/", json=content)
        if answer.status_code == 400 and "already exists" in answer.text:
            return  # the answer to an earlier try was lost
        self._check(answer)

    async def find(self, submission: str) -> Attempt | None:
        """What became of a submission; None where this Ray has never seen it: it is another one than then."""
        answer = await self._send("GET", f"/api/jobs/{submission}")
        if answer.status_code == 404:
            return None
        try:
            content = self._check(answer).json()
            if content["status"] not in get_args(Status):
                raise ValueError(content["status"])
            return Attempt(
                status=content["status"],
                exit_code=content.get("driver_exit_code"),
                reason=content.get("error_type"),
                message=content.get("message") or "",
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            shown = answer.text.strip()[:100]
            raise BadAnswer(
                f"Ray at {self.address} answers {shown!r}, which is no job's state; see its logs."
            ) from error

    async def stop(self, submission: str) -> None:
        """SIGTERM to its processes, SIGKILL after RAY_JOB_STOP_WAIT_TIME_S; returns at once."""
        answer = await self._send("POST", f"/api/jobs/{submission}/stop")
        if answer.status_code != 404:
            self._check(answer)

    async def _ask(self, method: str, path: str) -> httpx.Response:
        return self._check(await self._send(method, path))

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            return await self._client.request(method, path, **options)
        except httpx.HTTPError as error:
            raise self._away(error) from error

    def _check(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code in (401, 403):
            advice = "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to what the cluster was started with"
            raise RayError(f"Ray at {self.address} refuses the token (HTTP {answer.status_code}); {advice}.")
        if answer.status_code != 200:
            reason = (answer.text.strip().splitlines() or ["no reason given"])[-1]
            raise BadAnswer(
                f"Ray at {self.address} answers HTTP {answer.status_code} ({reason:.300}); see its logs.",
                final=answer.status_code in _FINAL,
            )
        return answer

    def _away(self, error: httpx.HTTPError) -> RayError:
        reason = str(error) or type(error).__name__
        # Who has taken the connection is there; one question may be too much for it.
        connected = isinstance(error, httpx.TransportError) and not isinstance(
            error, httpx.ConnectError | httpx.ConnectTimeout
        )
        return (BadAnswer if connected else RayError)(
            f"Ray at {self.address} does not answer ({reason}); see whether it runs."
        )


def cluster_token(environment: Mapping[str, str] | None = None) -> str:
    """The token of the cluster that RAY_ADDRESS names, looked for where Ray itself looks.

    Raises:
        RayError: there is none.
    """
    env = os.environ if environment is None else environment
    if token := (env.get("RAY_AUTH_TOKEN") or "").strip():
        return token
    path = Path(env.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        token = path.read_text().strip()
    except OSError as error:
        raise RayError(
            f"the token of RAY_ADDRESS is not there ('{path}': {error.strerror}); set RAY_AUTH_TOKEN_PATH to its file."
        ) from error
    if not token:
        raise RayError(f"the token file '{path}' is empty; write the cluster's token into it.")
    return token
