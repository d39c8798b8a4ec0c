"""What the registry and the history hold of a model, and how a service refuses a version."""

from __future__ import annotations

from collections.abc import Callable

from contracts.registry import CANARY_PERCENT, QUARANTINED, SHADOW, Quarantine
from pipelines import history, registry, rollout
from pipelines.promotion import Promotion

Submit = Callable[..., Promotion]


def in_registry() -> tuple[str | None, dict[str, str]]:
    """The challenger, and the tags that say its part."""
    client = registry.connect()
    tags = client.get_registered_model("tiny").tags
    found = rollout.challenger(client, "tiny")
    return found.version if found else None, {tag: tags[tag] for tag in (CANARY_PERCENT, SHADOW) if tag in tags}


def refuse(version: str, reason: str = "its golden images are wrong.") -> None:
    """Mark a version as a service does."""
    mark = Quarantine(reason, "2026-01-01T00:00:00+00:00").tag()
    registry.connect().set_model_version_tag("tiny", version, QUARANTINED, mark)


def entries() -> list[tuple[str, str | None, str | None]]:
    return [(entry.action, entry.from_version, entry.to_version) for entry in history.history("tiny")]
