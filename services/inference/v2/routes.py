"""The addresses below /v2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from contracts.errors import NoModel
from services.inference.models import Models
from services.inference.v2 import metadata
from services.inference.v2.form import Tensors

Action = Literal["v2", "v2/live", "v2/ready", "v2/model", "v2/model/ready", "v2/infer"]
"""What stands at an address; a closed set, so it may be a metric's label."""
INFER: Final = "v2/infer"

_SERVER: Final[dict[str, Action]] = {"/v2": "v2", "/v2/health/live": "v2/live", "/v2/health/ready": "v2/ready"}
_MODEL: Final[dict[str, Action]] = {"": "v2/model", "ready": "v2/model/ready", "infer": "v2/infer"}


@dataclass(frozen=True, slots=True)
class Address:
    action: Action
    name: str = ""
    version: str | None = None

    def form(self, headers: list[tuple[bytes, bytes]]) -> Tensors:
        """What a request to infer is read and answered by."""
        return Tensors(self.name, self.version, headers)

    def describe(self, models: Models, why_not_ready: str | None) -> dict[str, Any]:
        """The content of the answer to a GET.

        Raises:
            NoModel: not ready, and why.
            NotFound: no model has that name, or that version.
        """
        if self.action == "v2":
            return metadata.server()
        if self.action == "v2/live":
            return {"live": True}
        if self.action == "v2/ready":
            if why_not_ready is not None:
                raise NoModel(f"not ready: {why_not_ready}")
            return {"ready": True}
        model = models.get(self.name) if self.version is None else models.version(self.name, self.version)
        if self.action == "v2/model/ready":
            return {"name": model.name, "ready": True}
        return metadata.model(model, models.versions(model.name))


def is_ours(path: str) -> bool:
    return path.startswith("/v2/") or path == "/v2"


def find(path: str) -> Address | None:
    """What stands at `path`, None where nothing does."""
    if not is_ours(path):
        return None
    if (action := _SERVER.get(path)) is not None:
        return Address(action)
    parts = path.split("/", maxsplit=8)[2:]
    version = None
    if len(parts) >= 4 and parts[2] == "versions":
        version = parts.pop(3)
        del parts[2]
    if len(parts) not in (2, 3) or parts[0] != "models" or parts[2:] == [""]:
        return None
    action = _MODEL.get("".join(parts[2:]))
    return None if action is None else Address(action, parts[1], version)
