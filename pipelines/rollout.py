"""The challenger of a model as MLflow's registry holds it: an alias, and two tags of the registered model beside it.

The registry takes one write at a time, and a process can be killed between two. The alias decides: it is set last and
taken away first, so that what a kill leaves behind is no challenger, and never one with a part that nobody gave it.
"""

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
    model = version.model
    now = challenger(client, model)
    changed = _changed(client, model, rollout)
    same = now is not None and now.version == version.version
    with registry.registry_errors(f"to make {version.who} the challenger"):
        # One tag of the same challenger changes in one write, and it goes on. Else services, which look at any moment,
        # must neither give the old challenger the new one's share, nor half of what is wanted.
        alone = not (same and len(changed) <= 1)
        if alone and now is not None:
            client.delete_registered_model_alias(model, CHALLENGER)
        for tag, value in changed.items():
            client.set_registered_model_tag(model, tag, value)
        if alone:
            client.set_registered_model_alias(model, CHALLENGER, version.version)


def remove_challenger(client: MlflowClient, model: str) -> None:
    with registry.registry_errors(f"to take the challenger of {model} away"):
        client.delete_registered_model_alias(model, CHALLENGER)
    remove_tags(client, model)


def remove_tags(client: MlflowClient, model: str) -> None:
    """Of a challenger whose alias is gone, with which they mean nothing any more."""
    with registry.registry_errors(f"to take the challenger's tags of {model} away"):
        there = client.get_registered_model(model).tags
        for tag in (CANARY_PERCENT, SHADOW):
            if tag in there:
                client.delete_registered_model_tag(model, tag)


def _changed(client: MlflowClient, model: str, rollout: Rollout) -> dict[str, str]:
    """The tags that are not as they are wanted."""
    with registry.registry_errors(f"to read the tags of {model}"):
        tags = client.get_registered_model(model).tags
    return {tag: value for tag, value in rollout.tags().items() if tags.get(tag) != value}
