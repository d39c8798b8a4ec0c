"""A job on the stack's training service."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from tests.compose.stack import Stack


@dataclass(frozen=True)
class Job:
    """One that was taken."""

    stack: Stack
    id: str

    @classmethod
    def post(cls, stack: Stack, **content: Any) -> Job:
        """A job on the digits, of the kind and with the changes of `content`."""
        answer = stack.ask("training", "/v1/jobs", json.dumps({"recipe": "digits", **content}).encode())
        return cls(stack, json.loads(answer.body)["id"])

    def ended(self, *, timeout_s: float = 400) -> dict[str, Any]:
        """The job once it has ended, or when the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            found: dict[str, Any] = self.stack.get("training", f"/v1/jobs/{self.id}")
            if found["state"] not in ("queued", "running") or time.monotonic() > deadline:
                return found
            time.sleep(1)
