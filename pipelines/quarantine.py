"""Versions that a service has tried and refused, as it has marked them in the registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.registry import QUARANTINED, Quarantine
from pipelines import registry
from pipelines.gate import Check, Verdict
from pipelines.registry import Version

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


def versions(client: MlflowClient) -> dict[tuple[str, str], Quarantine]:
    """Every version that a service refuses, by model and version."""
    found: dict[tuple[str, str], Quarantine] = {}
    token: str | None = None
    with registry.registry_errors("to read which versions are in quarantine"):
        while True:
            page = client.search_model_versions(f"tags.`{QUARANTINED}` LIKE '%'", page_token=token)
            for item in page:
                if (quarantine := Quarantine.of(item.tags)) is not None:
                    found[item.name, str(item.version)] = quarantine
            if not (token := page.token):
                return found


def lift(client: MlflowClient, version: Version) -> None:
    """Take a version out of quarantine: a service that refused it tries it again."""
    with registry.registry_errors(f"to take {version.who} out of quarantine"):
        client.delete_model_version_tag(version.model, version.version, QUARANTINED)


def verdict(version: Version) -> Verdict | None:
    """The refusal of a version in quarantine, None where it is in none."""
    if version.quarantine is None:
        return None
    since = f" since {version.quarantine.since}" if version.quarantine.since else ""
    again = f"`stride promote {version.model} {version.version} --lift-quarantine` has it tried again"
    reason = f"a service refuses {version.who}{since} ({version.quarantine.reason.rstrip('.')}); {again}"
    return Verdict(accepted=False, checks=(Check(name="quarantine", passed=False, reason=reason),))
