"""How a model version in MLflow's registry points at its bundle: what export writes and inference reads.

A registered model version carries two tags. `BUNDLE_URI` is an MLflow artifact URI (`runs:/<run_id>/bundle`);
`BUNDLE_DIGEST` is the sha256 of its bundle.json, which in turn holds the sha256 of every file. A version without both
is not served. The alias `CHAMPION` names the version that is served, `CHALLENGER` one that is tried beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

CHAMPION: Final = "champion"
BUNDLE_ARTIFACT: Final = "bundle"
"""The directory of the run's artifacts that holds the bundle."""
BUNDLE_URI: Final = "stride.bundle_uri"
BUNDLE_DIGEST: Final = "stride.bundle_sha256"
PROMOTED_AT: Final = "stride.promoted_at"
"""Tag of the registered model: milliseconds since the epoch when its champion last moved. Without a name in the
request or in STRIDE_MODEL, the model whose champion moved last answers."""

CHALLENGER: Final = "challenger"
"""Alias of the version that is tried beside the champion; how it takes part is said by the two tags that follow."""
CANARY_PERCENT: Final = "stride.canary_percent"
"""Tag of the registered model: the share of requests, 0 to 100, that the challenger answers; 0 without it."""
SHADOW: Final = "stride.shadow"
"""Tag of the registered model: 1 where the challenger also computes what the champion answers, to be compared."""
QUARANTINED: Final = "stride.quarantined"
"""Tag of a version that a service tried and does not serve; taken off by the service that loads it later."""
_MOST_REASON: Final = 1000  # characters


@dataclass(frozen=True, slots=True)
class Rollout:
    """How the challenger of a registered model takes part."""

    percent: float = 0.0
    shadow: bool = False
    problem: str | None = None
    """What is wrong with the tags; what cannot be read counts as 0."""

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> Rollout:
        """As the tags of a registered model say; they can be edited by hand, so nothing is raised."""
        given, shadow = tags.get(CANARY_PERCENT) or "0", tags.get(SHADOW) or "0"
        problems = []
        try:
            percent = float(given)
        except ValueError:
            percent = -1.0
        if not 0 <= percent <= 100:  # also refuses nan
            problems.append(f"the tag {CANARY_PERCENT} is {given[:40]!r}, a number from 0 to 100 was expected")
            percent = 0.0
        if shadow not in ("0", "1"):
            problems.append(f"the tag {SHADOW} is {shadow[:40]!r}, 0 or 1 was expected")
        return cls(percent, shadow == "1", "; ".join(problems) or None)

    def tags(self) -> dict[str, str]:
        return {CANARY_PERCENT: f"{self.percent:g}", SHADOW: str(int(self.shadow))}


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Why a version is not served, as the tag `QUARANTINED` says it."""

    reason: str
    since: str
    """UTC, ISO 8601; empty where the tag was written by hand."""

    @classmethod
    def of(cls, tags: Mapping[str, str]) -> Quarantine | None:
        """As the tags of a version say; None where it is in no quarantine."""
        if (text := tags.get(QUARANTINED)) is None:
            return None
        try:
            content = json.loads(text)
            return cls(str(content["reason"]), str(content["since"]))
        except (ValueError, KeyError, TypeError):  # somebody wrote a reason of their own
            return cls(text[:_MOST_REASON] or "no reason is given", "")

    def tag(self) -> str:
        return json.dumps({"reason": self.reason[:_MOST_REASON], "since": self.since}, ensure_ascii=False)
