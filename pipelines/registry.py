"""MLflow's registry as Stride uses it: versions that point at verified bundles, and the alias that names the champion.

Nothing here decides. `register` makes a version of a bundle; `read_back` proves that what the registry holds can be
served. A version is trusted only as far as the digest in its tags reaches.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from contracts import bundle as bundles
from contracts import places
from contracts.bundle import MANIFEST, Bundle, Manifest
from contracts.errors import BundleError, RegistryError
from contracts.registry import BUNDLE_ARTIFACT, BUNDLE_DIGEST, BUNDLE_URI, CHAMPION, Quarantine
from pipelines import logged_model
from pipelines.golden import answer_golden

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True, kw_only=True, slots=True)
class Version:
    """A version of a registered model."""

    model: str
    version: str
    run_id: str
    bundle_uri: str | None
    digest: str | None
    """sha256 of bundle.json. A version without it, or without the URI, is not served."""
    quarantine: Quarantine | None = None
    """Why a service that tried it refuses it, where one does."""

    @property
    def who(self) -> str:
        return f"{self.model} version {self.version}"


def connect() -> MlflowClient:
    """A client of the tracking server, which has been reached (RegistryError where it is away)."""
    from services.training.mlflow_client import connect as connect_to

    return connect_to()


@contextlib.contextmanager
def registry_errors(doing: str) -> Iterator[None]:
    """Turns what MLflow raises into RegistryError."""
    from services.training.mlflow_client import registry_errors as errors_of

    with errors_of(places.tracking_uri(), doing):
        yield


def champion(client: MlflowClient, model: str) -> Version | None:
    """The version that is served, or None where the model is new or has no champion."""
    return aliased(client, model, CHAMPION)


def aliased(client: MlflowClient, model: str, alias: str) -> Version | None:
    """The version that an alias names, or None where there is no such model or alias."""
    from mlflow.exceptions import MlflowException

    with registry_errors(f"to read the {alias} of {model}"):
        try:
            return _version(client.get_model_version_by_alias(model, alias))
        except MlflowException as error:
            # No such model, and (a code of its own) a model without this alias.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def get_version(client: MlflowClient, model: str, version: str) -> Version:
    """One version.

    Raises:
        RegistryError: there is no such model or version, or the server is away.
    """
    if (found := find_version(client, model, version)) is None:
        raise RegistryError(f"{model} version {version}: the registry holds no such version; see `stride history`.")
    return found


def find_version(client: MlflowClient, model: str, version: str) -> Version | None:
    """One version, or None where it was deleted or never was."""
    from mlflow.exceptions import MlflowException

    with registry_errors(f"to read {model} version {version}"):
        try:
            return _version(client.get_model_version(model, version))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def versions_of_run(client: MlflowClient, run_id: str) -> list[Version]:
    """The versions whose bundle lies in a run, newest first."""
    with registry_errors(f"to read the versions of run {run_id}"):
        found = client.search_model_versions(f"run_id='{run_id}'")
    versions = (_version(item) for item in found)
    return sorted((version for version in versions if version.digest), key=lambda item: -int(item.version))


def fetch(client: MlflowClient, run_id: str, into: Path, *, digest: str | None = None) -> Bundle:
    """Download the bundle of a run through MLflow and verify it.

    Returns:
        the bundle in a directory under `into`.

    Raises:
        BundleError: the run holds none, a file is missing or changed, or its digest is not `digest`.
        RegistryError: the server is away.
    """
    with registry_errors(f"to fetch the bundle of run {run_id}"):
        if not client.list_artifacts(run_id, BUNDLE_ARTIFACT):
            raise BundleError(f"run {run_id}: it holds no {BUNDLE_ARTIFACT}/; export it (`stride export {run_id}`).")
        path = Path(client.download_artifacts(run_id, BUNDLE_ARTIFACT, str(into)))
    try:
        found = bundles.read(path)
    except BundleError as error:  # told of the run: the temporary directory means nothing to the reader
        reason = error.message.removeprefix(f"bundle {path}: ").rpartition("; ")[0]
        raise BundleError(f"run {run_id}: its bundle is broken: {reason}; roll back, or ship again.") from error
    if digest is not None and found.digest != digest:
        raise _changed(f"the bundle of run {run_id}", found.digest, digest)
    return found


def fetch_manifest(client: MlflowClient, version: Version) -> Manifest:
    """The manifest of a version's bundle, verified by the version's digest; the model itself is not fetched.

    Raises:
        BundleError: the version has no bundle, or its bundle.json is missing or changed.
        RegistryError: the server is away.
    """
    run_id, digest = _source(version)
    with tempfile.TemporaryDirectory() as directory, registry_errors(f"to fetch the manifest of {version.who}"):
        if not any(
            item.path == f"{BUNDLE_ARTIFACT}/{MANIFEST}" for item in client.list_artifacts(run_id, BUNDLE_ARTIFACT)
        ):
            raise BundleError(
                f"{version.who}: its run {run_id} holds no {MANIFEST} any more; roll back, or ship again."
            )
        data = Path(client.download_artifacts(run_id, f"{BUNDLE_ARTIFACT}/{MANIFEST}", directory)).read_bytes()
    if (found := hashlib.sha256(data).hexdigest()) != digest:
        raise _changed(f"the bundle of {version.who}", found, digest)
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        raise BundleError(f"{version.who}: its {MANIFEST} is of another schema; ship the model again.") from error


def read_back(client: MlflowClient, version: Version, into: Path) -> Bundle:
    """Fetch what a version points at as a server would, verify its digest and answer its golden images.

    Raises:
        BundleError: the version has no bundle, the bundle is incomplete or changed, or it answers otherwise.
        RegistryError: the server is away.
    """
    run_id, digest = _source(version)
    found = fetch(client, run_id, into, digest=digest)
    answer_golden(found)
    return found


def register(bundle: Bundle, run_id: str) -> Version:
    """Make a bundle that lies in a run a version of its model, with `mlflow.onnx`; verified before and after.

    A version that exists for the same run and the same digest is taken again, so a second try after a crash adds none.

    Raises:
        BundleError: the bundle on disk or in the run's artifacts is incomplete or changed; no version is made.
        RegistryError: the server is away.
    """
    on_disk = bundles.read(bundle.path)
    if on_disk.digest != bundle.digest:
        raise _changed(f"the bundle {bundle.path}", on_disk.digest, bundle.digest)
    client = connect()
    with tempfile.TemporaryDirectory() as directory:
        stored = fetch(client, run_id, Path(directory), digest=bundle.digest)
        answer_golden(stored)
        name = stored.manifest.name
        same = (item for item in versions_of_run(client, run_id) if (item.model, item.digest) == (name, bundle.digest))
        if (known := next(same, None)) is not None:
            return known
        with registry_errors(f"to register run {run_id} as {name}"):
            model_id = logged_model.log(client, stored, run_id, Path(directory))
        # The registry takes a version with nothing in it, so what MLflow stored is fetched and run before there is one.
        with registry_errors(f"to read back the MLflow model of run {run_id}"):
            location = client.get_logged_model(model_id).artifact_location
            store: Any = artifacts(location)
            model = Path(store.download_artifacts("model.onnx", directory)).read_bytes()
        answer_golden(stored, model)
    tags = {BUNDLE_URI: f"runs:/{run_id}/{BUNDLE_ARTIFACT}", BUNDLE_DIGEST: bundle.digest}
    # MLflow's own SQL store would look `models:/…` up in the process's default data base instead of this one.
    source = location if places.tracking_uri().startswith("sqlite:") else f"models:/{model_id}"
    with registry_errors(f"to register run {run_id} as {name}"):
        _ensure_model(client, name)
        made = client.create_model_version(
            name, source=source, run_id=run_id, tags=tags, model_id=model_id, await_creation_for=60
        )
    return get_version(client, name, str(made.version))


def artifacts(location: str) -> ArtifactRepository:
    """MLflow's store of the artifacts at `location`, by the same server as everything else."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(location, tracking_uri=places.tracking_uri())


def _ensure_model(client: MlflowClient, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _version(found: ModelVersion) -> Version:
    tags = found.tags
    return Version(
        model=found.name,
        version=str(found.version),
        run_id=found.run_id or "",
        bundle_uri=tags.get(BUNDLE_URI),
        digest=tags.get(BUNDLE_DIGEST),
        quarantine=Quarantine.of(tags),
    )


def _source(version: Version) -> tuple[str, str]:
    """(run, digest) that the tags of a version name."""
    prefix, suffix = "runs:/", f"/{BUNDLE_ARTIFACT}"
    uri = version.bundle_uri or ""
    if version.digest is None or not (uri.startswith(prefix) and uri.endswith(suffix)):
        raise BundleError(
            f"{version.who}: its tags name no bundle ({uri or 'no URI'}); register it with `stride ship`."
        )
    return uri.removeprefix(prefix).removesuffix(suffix), version.digest


def _changed(what: str, found: str, wanted: str) -> BundleError:
    return BundleError(f"{what} was changed: sha256 {found[:12]}…, expected {wanted[:12]}…; roll back, or ship again.")
