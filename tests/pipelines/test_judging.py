"""What the gate is given to decide on, and where its verdict stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contracts import bundle as bundles
from contracts import cpu
from contracts.bundle import Bundle, Serving
from contracts.errors import BundleError
from contracts.recipe import Gate
from contracts.registry import CHAMPION
from pipelines import registry
from pipelines.export import export
from pipelines.promotion import Promotion, submit
from pipelines.refusal import Refused
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


def test_a_model_that_learned_nothing_is_refused_without_any_threshold(make_run: Any, digits: Dataset) -> None:
    run_id = make_run("useless")
    bundle = export(run_id, dataset=digits)
    largest = np.bincount(digits.test.labels).max() / len(digits.test)
    assert bundle.manifest.metrics["test/majority_baseline"] == pytest.approx(largest)

    sentence = rf"refused \(baseline: .* is not above {largest:.4f}, .*stays without a champion"
    with pytest.raises(Refused, match=sentence):
        submit(bundle, run_id, thresholds=Gate(min_accuracy=0, max_drop=0.99))

    assert registry.champion(registry.connect(), "tiny") is None


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


@pytest.mark.parametrize(("lacks", "answers"), [(None, "model-int8.onnx"), ("no VNNI here", "model.onnx")])
def test_a_tuned_champion_is_measured_with_the_graph_that_this_machine_would_serve(
    make_run: Any, submit_run: Submit, digits: Dataset, monkeypatch: pytest.MonkeyPatch, lacks: str | None, answers: str
) -> None:
    """Products of 8-bit integers that saturate would make it look worse than it is, and let a worse one past it."""
    run_id = make_run("good")
    bundle = export(run_id, dataset=digits)
    manifest = bundle.manifest
    golden = tuple(golden.probabilities for golden in manifest.golden)
    serving = Serving(
        file="model-int8.onnx", precision="int8", provider="CPUExecutionProvider", exact_int8=True, golden=golden,
        tolerance=0.02, reason="a test", gain=0.5, machine="a test",
    )  # fmt: skip
    provenance = manifest.provenance.model_copy(update={"test_fingerprint": "0" * 64})
    files = {name: bundle.read(name) for name in manifest.files}
    changed = manifest.model_copy(update={"serving": serving, "provenance": provenance})
    tuned = bundles.write(bundle.path, changed, {**files, "model-int8.onnx": bundle.read("model.onnx") + b""})
    registry.connect().log_artifacts(run_id, str(tuned.path), "bundle")
    monkeypatch.setattr(cpu, "lacks_int8", lambda: lacks)
    submit(tuned, run_id, dataset=digits)
    read: list[str] = []
    whole = Bundle.read

    def noted(self: Bundle, name: str) -> bytes:
        read.append(name)
        return whole(self, name)

    monkeypatch.setattr(Bundle, "read", noted)
    monkeypatch.setattr(registry, "answer_golden", lambda *_: None)

    submit_run("good")

    assert next(name for name in read if name.startswith("model")) == answers


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
    run_id = make_run("worse")
    client = registry.connect()
    client.create_registered_model("tiny")
    client.create_model_version("tiny", source=f"runs:/{run_id}/nothing")
    client.set_registered_model_alias("tiny", CHAMPION, "1")

    assert submit(export(run_id, dataset=digits), run_id).version == "2"
