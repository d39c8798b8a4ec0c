"""MLflow's registry, read only: which version of each model is the champion, and where its bundle lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts import registry as tags
from contracts.errors import RegistryError

# MLflow's own defaults (7 retries, 120 s each) would hold a poll for minutes when the server is away.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True, slots=True)
class Champion:
    """A registered model's champion. `uri` and `digest` are empty when the version lacks the tag."""

    name: str
    version: str
    uri: str
    digest: str
    promoted_at: int


class Registry:
    """Blocking; to be used from one thread. Every method raises RegistryError when the server does not answer."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._client: Any = None

    def champions(self, names: tuple[str, ...]) -> list[Champion]:
        """The champion of every model of `names`, or of all when there are none; models without one are left out."""
        try:
            client = self._connect()
            found = []
            for model in self._models(client, names):
                version = model.aliases.get(tags.CHAMPION)
                if version is not None:
                    found.append(_champion(model, client.get_model_version(model.name, str(version))))
        except Exception as error:  # MLflow's, requests', a data base driver's, or that there is none
            raise RegistryError(f"the registry at {self.uri} does not answer: {_line(error)}.") from error
        return found

    def download(self, champion: Champion, directory: Path) -> Path:
        """Fetch a champion's bundle below `directory`; where it lies then."""
        try:
            from mlflow.artifacts import download_artifacts

            self._connect()
            path = download_artifacts(artifact_uri=champion.uri, dst_path=str(directory), tracking_uri=self.uri)
        except Exception as error:  # as above; a cloud store's client has errors of its own as well
            who = f"{champion.name!r} version {champion.version}"
            raise RegistryError(
                f"the bundle of {who} cannot be fetched from {champion.uri}: {_line(error)}."
            ) from error
        return Path(path)

    def _connect(self) -> Any:
        if self._client is None:
            for name, value in _PATIENCE.items():
                os.environ.setdefault(name, value)
            from mlflow import MlflowClient  # a second or more: only here, in the watcher's thread

            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def _models(self, client: Any, names: tuple[str, ...]) -> Iterator[Any]:
        from mlflow.exceptions import MlflowException

        for name in names:
            try:
                yield client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
        token = None
        while not names:
            page = client.search_registered_models(max_results=200, page_token=token)
            yield from page
            token = page.token
            if not token:
                return


def _champion(model: Any, version: Any) -> Champion:
    promoted = str(model.tags.get(tags.PROMOTED_AT, ""))
    return Champion(
        name=model.name,
        version=str(version.version),
        uri=str(version.tags.get(tags.BUNDLE_URI, "")),
        digest=str(version.tags.get(tags.BUNDLE_DIGEST, "")),
        promoted_at=int(promoted) if promoted.isdecimal() else 0,
    )


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
