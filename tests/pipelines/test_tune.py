"""`stride tune`: what comes into the bundle, the run and the gate. Which graph wins is said by the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from contracts import bundle as bundles
from contracts.bundle import Bundle
from contracts.errors import BundleError, DataError
from contracts.image_spec import ImageSpec
from contracts.recipe import Tune
from pipelines import golden, graph, measure, parity, registry
from pipelines.candidates import Candidate, Maker
from pipelines.cli.main import main
from pipelines.export import export
from pipelines.measure import Timing
from pipelines.promotion import promote, submit
from pipelines.refusal import Refused
from pipelines.tune import REPORT, TABLE, tune
from services.inference.engine import Engine
from services.inference.provider import CPU, Provider
from services.training import device
from services.training.data.dataset import Dataset

pytestmark = pytest.mark.usefixtures("quick_export")

LIMITS = Tune(seconds=0.1, max_loss=0.02, min_images=1)


def clock(fastest: str) -> Callable[..., dict[str, Timing]]:
    """In the place of `measure.interleaved`: one graph takes 0.4 of the time that the others take."""

    def interleaved(calls: Mapping[str, object], **_: float) -> dict[str, Timing]:
        seconds = {name: 0.4 if name.startswith(f"{fastest}:") else 1.0 for name in calls}
        return {name: Timing(cpu_s=took, wall_s=took) for name, took in seconds.items()}

    return interleaved


@pytest.fixture
def int8_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "interleaved", clock("int8"))


@pytest.fixture
def fp32_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "interleaved", clock("fp32"))


def test_the_chosen_graph_lies_beside_model_onnx_with_golden_answers_of_its_own(
    make_run: Any, digits: Dataset, int8_wins: None
) -> None:
    run_id = make_run("good")
    before = export(run_id, dataset=digits)

    tuning = tune(run_id, limits=LIMITS, dataset=digits)

    manifest = tuning.bundle.manifest
    serving = manifest.serving
    assert tuning.written
    assert serving is not None
    assert (serving.file, serving.precision) == ("model-int8.onnx", "int8")
    assert serving.gain == pytest.approx(0.6)
    assert tuning.bundle.read("model.onnx") == before.read("model.onnx")
    assert manifest.golden == before.manifest.golden
    assert len(serving.golden) == len(manifest.golden)
    assert serving.golden != tuple(golden.probabilities for golden in manifest.golden)
    golden.answer_golden(tuning.bundle)


def test_the_service_serves_the_chosen_graph(make_run: Any, digits: Dataset, int8_wins: None) -> None:
    bundle = tune(make_run("good"), limits=LIMITS, dataset=digits).bundle

    engine = Engine(bundle, Provider(CPU, "a test"), threads=1, max_batch=64)

    assert engine.precision == "int8"
    assert engine.golden_difference < 1e-4
    right = engine.infer(digits.test.images).argmax(axis=1) == digits.test.labels
    assert right.mean() == pytest.approx(bundle.manifest.metrics["test/accuracy"])


def test_the_metrics_are_those_of_the_graph_that_is_served(make_run: Any, digits: Dataset, int8_wins: None) -> None:
    run_id = make_run("good")

    bundle = tune(run_id, limits=LIMITS, dataset=digits).bundle

    session = graph.open_session(bundle.read("model-int8.onnx"))
    answers = graph.predict(session, digits.test.images, batch_size=64)
    metrics, reference = bundle.manifest.metrics, bundle.manifest.reference
    assert metrics["test/accuracy"] == parity.accuracy(answers, digits.test.labels)
    assert metrics["test/loss"] == pytest.approx(parity.loss(answers, digits.test.labels))
    assert metrics["test/loss"] != bundle.manifest.parity["loss_onnx"]
    assert "test/majority_baseline" in metrics
    assert reference is not None
    assert sum(reference.classes) == len(digits.test)
    assert registry.connect().get_run(run_id).data.metrics["onnx/test/loss"] == metrics["test/loss"]
    plain = bundle.manifest.measured("model.onnx")  # what a machine that cannot serve the choice serves
    assert plain.metrics["test/loss"] == pytest.approx(bundle.manifest.parity["loss_onnx"])
    assert plain.reference is not None
    assert sum(plain.reference.classes) == len(digits.test)


def test_the_run_holds_the_bundle_the_table_and_the_figures(
    make_run: Any, digits: Dataset, int8_wins: None, tmp_path: Path
) -> None:
    run_id = make_run("good")
    client = registry.connect()

    tuning = tune(run_id, limits=LIMITS, dataset=digits)

    assert registry.fetch(client, run_id, tmp_path).digest == tuning.bundle.digest
    table = json.loads(Path(client.download_artifacts(run_id, TABLE, str(tmp_path))).read_text())
    assert table == tuning.to_json()
    assert {row["name"] for row in table["candidates"]} >= {"fp32", "int8"}
    report = Path(client.download_artifacts(run_id, REPORT, str(tmp_path))).read_text()
    assert report.startswith("## Tuning")
    assert "| int8 | 1 |" in report
    metrics = client.get_run(run_id).data.metrics
    assert metrics["tuning/gain"] == pytest.approx(0.6)
    assert metrics["tuning/images"] == len(digits.validation)
    assert metrics["tuning/agreement"] > 0.9


def test_where_fp32_stays_the_bundle_says_why_and_keeps_its_metrics(
    make_run: Any, digits: Dataset, fp32_wins: None
) -> None:
    run_id = make_run("good")
    before = export(run_id, dataset=digits)

    manifest = tune(run_id, limits=LIMITS, dataset=digits).bundle.manifest

    assert manifest.serving is not None
    assert manifest.served_file == "model.onnx"
    assert manifest.serving.reason == "nothing that keeps the accuracy saves 10% of fp32's time"
    assert manifest.metrics == before.manifest.metrics
    assert set(manifest.files) == set(before.manifest.files)


def test_a_second_tuning_takes_the_place_of_the_first(
    make_run: Any, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = make_run("good")
    with monkeypatch.context() as first:
        first.setattr(measure, "interleaved", clock("int8"))
        tune(run_id, limits=LIMITS, dataset=digits)
    monkeypatch.setattr(measure, "interleaved", clock("fp32"))

    again = tune(run_id, limits=LIMITS, dataset=digits)

    fetched = registry.fetch(registry.connect(), run_id, tmp_path)
    assert fetched.digest == again.bundle.digest
    assert "model-int8.onnx" not in fetched.manifest.files
    session = graph.open_session(fetched.read("model.onnx"))
    answers = graph.predict(session, digits.test.images, batch_size=64)
    assert fetched.manifest.metrics["test/loss"] == pytest.approx(parity.loss(answers, digits.test.labels))


def test_the_bundle_of_a_version_is_measured_and_not_changed(make_run: Any, digits: Dataset, int8_wins: None) -> None:
    run_id = make_run("good")
    known = export(run_id, dataset=digits)
    registry.register(known, run_id)

    tuning = tune(run_id, limits=LIMITS, dataset=digits)

    assert not tuning.written
    assert tuning.note is not None
    assert tuning.note.startswith("tiny version 1 is this bundle")
    assert tuning.note.endswith("fit its recipe again with --force to tune it")  # without, the run is taken again
    assert tuning.bundle.digest == known.digest
    assert bundles.read(known.path).digest == known.digest


def test_a_tuning_that_was_not_written_does_not_say_that_its_graph_is_served(
    make_run: Any, digits: Dataset, int8_wins: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = make_run("good")
    registry.register(export(run_id, dataset=digits), run_id)
    said: list[str] = []

    tuning = tune(run_id, limits=LIMITS, dataset=digits, say=said.append)

    assert not [line for line in said if "will be served" in line]
    report = registry.connect().download_artifacts(run_id, REPORT, str(tmp_path))
    assert str(tuning.note) in Path(report).read_text()
    with pytest.raises(SystemExit):
        main(["tune", run_id, "--seconds", "0.1"])
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("served ")]


def test_a_tuned_bundle_is_promoted_on_the_accuracy_of_the_graph_that_is_served(
    make_run: Any, digits: Dataset, int8_wins: None
) -> None:
    run_id = make_run("good")
    bundle = tune(run_id, limits=LIMITS, dataset=digits).bundle

    done = submit(bundle, run_id, dataset=digits)

    served = bundle.manifest.metrics["test/accuracy"]
    assert any(f"test accuracy {served:.4f}" in reason for reason in done.reasons)
    assert promote("tiny", done.version).action == "unchanged"


def test_an_int8_graph_that_is_too_bad_on_the_test_images_is_refused_by_the_gate(
    make_run: Any, make_recipe: Any, digits: Dataset, int8_wins: None
) -> None:
    run_id = make_run("good", recipe=make_recipe(gate={"min_accuracy": 0.9999}))

    with pytest.raises(Refused, match="floor"):
        submit(tune(run_id, limits=LIMITS, dataset=digits).bundle, run_id, dataset=digits)


def test_a_tuned_graph_that_was_changed_is_found_when_it_is_verified(
    make_run: Any, digits: Dataset, int8_wins: None, graphs: dict[str, Any], exported_graphs: dict[int, bytes]
) -> None:
    bundle = tune(make_run("good"), limits=LIMITS, dataset=digits).bundle
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    files["model-int8.onnx"] = exported_graphs[id(graphs["useless"])]
    forged: Bundle = bundles.write(bundle.path, bundle.manifest, files)

    with pytest.raises(BundleError, match="golden images are answered off by"):
        golden.answer_golden(forged)


def test_other_images_than_the_runs_are_refused(make_run: Any, digits: Dataset) -> None:
    run_id = make_run("good")
    export(run_id, dataset=digits)

    with pytest.raises(DataError, match=r"its images have the fingerprint"):
        tune(run_id, limits=LIMITS, dataset=replace(digits, fingerprint="0" * 64))


def test_without_validation_images_nothing_is_judged(make_run: Any, digits: Dataset) -> None:
    run_id = make_run("good")
    export(run_id, dataset=digits)
    none = digits.validation.take(digits.validation.labels[:0].astype(int))

    with pytest.raises(DataError, match="has no validation images"):
        tune(run_id, limits=LIMITS, dataset=replace(digits, validation=none))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_onnxruntime_does_not_find_the_gpu_the_cpu_is_tuned_for(
    make_run: Any, digits: Dataset, int8_wins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "choose_device", lambda: ("cuda", "a GPU that is not there", "a test"))
    said: list[str] = []

    serving = tune(make_run("good"), limits=LIMITS, dataset=digits, say=said.append).serving

    assert serving.provider == "CPUExecutionProvider"
    assert any(line.startswith("comparing for the CPU, because model.onnx does not run on CUDA") for line in said)


def test_the_command_prints_the_table_or_json(
    make_run: Any, make_recipe: Any, int8_wins: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = make_run("good", recipe=make_recipe(tune={"max_loss": 0.02, "min_images": 1}))

    with pytest.raises(SystemExit) as ended:
        main(["tune", run_id, "--seconds", "0.1"])
    shown = capsys.readouterr().out
    with pytest.raises(SystemExit) as again:
        main(["tune", run_id, "--seconds", "0.1", "--json"])
    answer = json.loads(capsys.readouterr().out)

    assert (ended.value.code, again.value.code) == (0, 0)
    assert shown.startswith("graph")
    assert "served         model-int8.onnx" in shown
    assert answer["run_id"] == run_id
    assert answer["serving"]["file"] == "model-int8.onnx"


def test_an_unknown_run_is_an_error_of_one_sentence(embedded_tracking: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["tune", "f00d" * 8])

    captured = capsys.readouterr()
    assert ended.value.code == 1
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: run")
    assert "has no such run" in captured.err


def test_what_is_compared_is_the_same_every_time(
    exported_graphs: dict[int, bytes], graphs: dict[str, Any], digits: Dataset
) -> None:
    def names() -> list[str]:
        image = ImageSpec(height=8, width=8, channels=1)
        maker = Maker(exported_graphs[id(graphs["good"])], image=image, train=digits.train.images, cuda=False)
        return [each.name for each in maker.others() if isinstance(each, Candidate)]

    assert names() == names() == ["fp32, plain layout", "int8", "int8, first layer fp32"]
