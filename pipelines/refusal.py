"""No, said by the gate or by a service: raised with the verdict, and written into the history."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.errors import GateRefused
from pipelines import history, quarantine
from pipelines.gate import Verdict
from pipelines.registry import Version

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient


class Refused(GateRefused):
    """The gate said no; carries the verdict and the champion that stays."""

    def __init__(self, message: str, *, verdict: Verdict, champion: str | None) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.champion = champion


def refuse_quarantined(client: MlflowClient, version: Version, champion: Version | None, *, lift: bool = False) -> None:
    """Refuse what a service has tried and refused, unless its quarantine is to be lifted once the gate has said yes.

    Raises:
        Refused: it is in quarantine.
    """
    if not lift and (verdict := quarantine.verdict(version)) is not None:
        raise refuse(client, version.model, champion, version.run_id, verdict)


def refuse(client: MlflowClient, model: str, champion: Version | None, run_id: str, verdict: Verdict) -> Refused:
    """The refusal, written into the history; to be raised."""
    entry = history.begin(
        client,
        model=model,
        action="refuse",
        from_version=champion.version if champion else None,
        to_version=None,
        run_id=run_id,
        reasons=verdict.reasons,
    )
    history.finish(client, entry)
    failed = "; ".join(f"{check.name}: {check.reason}" for check in verdict.failed)
    stays = f"version {champion.version} stays the champion" if champion else f"'{model}' stays without a champion"
    message = f"run {run_id} was refused ({failed}); {stays}."
    return Refused(message, verdict=verdict, champion=champion.version if champion else None)
