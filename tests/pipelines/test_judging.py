"""What the gate is given to decide on, and where its verdict stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.errors import BundleError
from contracts.recipe import Gate
from contracts.registry import CHAMPION
from pipelines import registry
from pipelines.export import export
from pipelines.promotion import Promotion, Refused, submit
from services.training.data.dataset import Dataset

Submit = Callable[..., Promotion]
pytestmark = pytest.mark.usefixtures("quick_export")


def test_the_verdict_stands_on_the_run_when_it_is_refused_too(make_run: Any, digits: Dataset, tmp_path: Path) -> None:
    run_id = make_run("useless")

    with pytest.raises(Refused):
        submit(export(run_id, dataset=digits), run_id, thresholds=Gate(min_accuracy=0.9))

    client = registry.connect()
    data = client.get_run(run_id).data
    assert data.tags["stride.verdict"] == "refused"
    assert "failed floor" in data.tags["stride.verdict_reasons"]
    assert data.metrics["gate/accepted"] == 0
    path = Path(client.download_artifacts(run_id, "verdict", str(tmp_path)))
    assert json.loads((path / "verdict.json").read_text())["accepted"] is False
    assert "refused" in (path / "verdict.md").read_text()


def test_a_champion_of_other_test_images_is_measured_on_the_candidates(
    make_run: Any, digits: Dataset, submit_run: Submit
) -> None:
    first = submit_run("good")
    client = registry.connect()
    said: list[str] = []
    # The champion says of itself that it is perfect, on test images that nobody has.
    forged = registry.fetch_manifest(client, registry.get_version(client, "tiny", "1"))
    provenance = forged.provenance.model_copy(update={"test_fingerprint": "0" * 64})
    forged = forged.model_copy(update={"provenance": provenance, "metrics": {"test/accuracy": 1.0}})
    client.log_text(first.run_id, forged.to_bytes().decode(), "bundle/bundle.json")
    client.set_model_version_tag("tiny", "1", "stride.bundle_sha256", forged.digest())

    done = submit_run("good", say=said.append)

    assert done.version == "2"
    assert "measuring tiny version 1 on the candidate's test images" in said


def test_a_broken_champion_is_not_passed_over_and_the_way_out_works(submit_run: Submit) -> None:
    first = submit_run("worse")
    client = registry.connect()
    client.log_text(first.run_id, "{}", "bundle/bundle.json")

    with pytest.raises(BundleError, match=r"tiny version 1.*take the alias 'champion' off it in MLflow"):
        submit_run("good")
    champion = registry.champion(client, "tiny")
    assert champion is not None
    assert champion.version == "1"

    client.delete_registered_model_alias("tiny", CHAMPION)
    assert submit_run("good").action == "promote"


def test_a_champion_without_a_bundle_does_not_stand_in_the_way(make_run: Any, digits: Dataset) -> None:
    run_id = make_run("useless")
    client = registry.connect()
    client.create_registered_model("tiny")
    client.create_model_version("tiny", source=f"runs:/{run_id}/nothing")
    client.set_registered_model_alias("tiny", CHAMPION, "1")

    assert submit(export(run_id, dataset=digits), run_id).version == "2"
