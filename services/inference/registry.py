"""MLflow's registry: which version of each model is to be served, which one is tried beside it, where they lie.

Read, but for one tag: a version that is put in quarantine is marked as such.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from contracts import registry as tags
from contracts.errors import RegistryError
from contracts.registry import Quarantine, Rollout
from services.inference.pins import Pin

# MLflow's own defaults (7 retries, 120 s each) would hold a poll for minutes when the server is away.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True, slots=True)
class Wanted:
    """A version that is to be served. `uri` and `digest` are empty when it lacks the tag."""

    name: str
    version: str
    uri: str
    digest: str
    promoted_at: int
    quarantine: Quarantine | None = field(default=None, compare=False)
    """What its tag says. Not compared: that we write it does not make the version another one."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What the registry says of one model."""

    name: str
    wanted: Wanted | None
    missing: str | None = None
    """Why nothing is wanted of a model that was asked for by name."""
    challenger: Wanted | None = None
    rollout: Rollout = field(default_factory=Rollout)


class Registry:
    """Blocking; to be used from one thread. Every method raises RegistryError when the server does not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client: Any = None

    def look(self, names: tuple[str, ...], pins: Mapping[str, Pin]) -> list[Registered]:
        """Every model of `names`, or every registered one when there are none; `pins` where not the champion."""
        try:
            client = self._connect()
            return [self._registered(client, name, model, pins) for name, model in self._models(client, names)]
        except Exception as error:  # MLflow's, requests', a data base driver's, or that there is none
            raise RegistryError(f"the registry at {shown(self.uri)} does not answer: {_line(error)}.") from error

    def download(self, wanted: Wanted, directory: Path) -> Path:
        """Fetch a version's bundle below `directory`; where it lies then."""
        try:
            from mlflow.artifacts import download_artifacts

            self._connect()
            path = download_artifacts(artifact_uri=wanted.uri, dst_path=str(directory), tracking_uri=self.uri)
        except Exception as error:  # as above; a cloud store's client has errors of its own as well
            who = f"{wanted.name!r} version {wanted.version}"
            raise RegistryError(
                f"the bundle of {who} cannot be fetched from {shown(wanted.uri)}: {_line(error)}."
            ) from error
        return Path(path)

    def mark(self, wanted: Wanted, quarantine: Quarantine | None) -> None:
        """Put the tag of the quarantine on a version, or take it off (None)."""
        try:
            client = self._connect()
            if quarantine is None:
                client.delete_model_version_tag(wanted.name, wanted.version, tags.QUARANTINED)
            else:
                client.set_model_version_tag(wanted.name, wanted.version, tags.QUARANTINED, quarantine.tag())
        except Exception as error:  # as above
            who = f"{wanted.name!r} version {wanted.version}"
            raise RegistryError(f"the tag {tags.QUARANTINED} of {who} cannot be written: {_line(error)}.") from error

    def _connect(self) -> Any:
        if self._client is None:
            for name, value in _PATIENCE.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient  # a second or more: only here, in the watcher's thread

            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def _models(self, client: Any, names: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name in names:
            yield name, _or_none(client.get_registered_model, name)
        token = None
        while not names:
            page = client.search_registered_models(max_results=200, page_token=token)
            yield from ((model.name, model) for model in page)
            token = page.token
            if not token:
                return

    def _registered(self, client: Any, name: str, model: Any, pins: Mapping[str, Pin]) -> Registered:
        if model is None:
            return Registered(name, None, f"the registry holds no model {name!r}; `stride ship` registers one")
        pin = pins.get(name, Pin())
        number = pin.version or model.aliases.get(pin.alias)
        if number is None:
            how = f"`stride promote {name} VERSION`" if pin == Pin() else "set it in MLflow"
            return Registered(name, None, f"no version of {name!r} has the alias {pin.alias!r}; {how}")
        wanted = _wanted(client, model, number)
        if wanted is None:
            return Registered(name, None, f"{name!r} has no version {number}; name one that the registry holds")
        rival = model.aliases.get(tags.CHALLENGER)
        # A pinned model is to be served in that version alone; and a version is no challenger of itself.
        if pin != Pin() or rival is None or str(rival) == wanted.version:
            return Registered(name, wanted)
        return Registered(name, wanted, None, _wanted(client, model, rival), Rollout.of(model.tags))


def _wanted(client: Any, model: Any, number: Any) -> Wanted | None:
    version = _or_none(client.get_model_version, model.name, str(number))
    if version is None:
        return None
    promoted = str(model.tags.get(tags.PROMOTED_AT, ""))
    return Wanted(
        name=model.name,
        version=str(version.version),
        uri=str(version.tags.get(tags.BUNDLE_URI, "")),
        digest=str(version.tags.get(tags.BUNDLE_DIGEST, "")),
        promoted_at=int(promoted) if promoted.isdecimal() else 0,
        quarantine=Quarantine.of(version.tags),
    )


def _or_none(get: Any, *key: str) -> Any:
    """What the registry holds under that key, None where it holds nothing: one gap must not hide the other models."""
    from mlflow.exceptions import MlflowException

    try:
        return get(*key)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def shown(text: str) -> str:
    """An address, or what an error says of one, without the name and password that may stand in it."""
    return _CREDENTIALS.sub("", text)


def _line(error: Exception) -> str:
    return shown((str(error).strip().splitlines() or [type(error).__name__])[0]).rstrip(".")[:300]
