"""The challenger of a model as MLflow's registry holds it: an alias, and two tags of the registered model beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.registry import CANARY_PERCENT, CHALLENGER, SHADOW, Rollout
from pipelines import registry
from pipelines.registry import Version

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def challenger(client: MlflowClient, model: str) -> Version | None:
    """The version that is tried beside the champion, or None."""
    return registry.aliased(client, model, CHALLENGER)


def read(client: MlflowClient, model: str) -> Rollout:
    """How the challenger of a model that is registered takes part."""
    with registry.registry_errors(f"to read the tags of {model}"):
        return Rollout.of(client.get_registered_model(model).tags)


def set_challenger(client: MlflowClient, version: Version, rollout: Rollout) -> None:
    """Have a version take part; in the place of another challenger, if there is one."""
    now = challenger(client, version.model)
    with registry.registry_errors(f"to make {version.who} the challenger"):
        if now is None or now.version != version.version:
            # Services look at any moment: neither may the old challenger get the new one's share, nor the new one
            # what is left of an older.
            _tag(client, version.model, Rollout())
            client.set_registered_model_alias(version.model, CHALLENGER, version.version)
        _tag(client, version.model, rollout)


def remove_challenger(client: MlflowClient, model: str) -> None:
    with registry.registry_errors(f"to take the challenger of {model} away"):
        client.delete_registered_model_alias(model, CHALLENGER)
        for tag in (CANARY_PERCENT, SHADOW):
            client.delete_registered_model_tag(model, tag)


def _tag(client: MlflowClient, model: str, rollout: Rollout) -> None:
    for tag, value in rollout.tags().items():
        client.set_registered_model_tag(model, tag, value)
