"""Runs on real SQLite stores; the ones over HTTP are in tests/services/tracking/test_server.py."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import pytest

from contracts.errors import FitError, RecipeError, RegistryError
from contracts.recipe import Recipe
from services.training import journal_sync, tracking
from services.training.data.dataset import Dataset
from services.training.journal import Journal
from services.training.journal_lock import Busy
from services.training.mlflow_client import connect
from services.training.run import Run
from services.training.tracking import NotResumable


def _artifacts(home: Path, run_id: str, model_name: str = "tiny") -> Path:
    return home / "artifacts" / model_name / run_id / "artifacts"


def _recorded(run_id: str) -> Any:
    inputs = tracking.get_run(run_id).inputs
    assert inputs is not None
    (recorded,) = inputs.dataset_inputs
    return recorded.dataset


def test_importing_the_module_imports_no_mlflow() -> None:
    code = "import sys, services.training.tracking, services.training.report\n"
    code += "assert not {'mlflow', 'matplotlib', 'sklearn', 'torch'} & set(sys.modules), sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_run_that_ends_well_is_finished_and_holds_what_was_logged(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe, tiny_dataset: Dataset
) -> None:
    with tracking.open_run(tiny_recipe, tags={"stride.device": "cpu"}) as run:
        run.dataset(tiny_dataset)
        run.epoch(1, {"train/loss": 2.0, "validation/loss": 1.5})
        run.epoch(2, {"train/loss": 1.0, "validation/loss": float("nan")})
        run.metrics({"test/accuracy": 0.5})
        run.file("weights.bin", b"\x00\x01")
        run.file("deep/er/text.txt", "höhe")
        run.note("# card")
    found = tracking.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.info.run_name.startswith("tiny-")
    assert found.data.metrics["train/loss"] == 1.0
    assert found.data.metrics["test/accuracy"] == 0.5
    assert found.data.tags["stride.device"] == "cpu"
    assert found.data.tags["stride.recipe"] == "tiny"
    assert found.data.tags["stride.recipe_hash"] == tiny_recipe.digest()
    assert found.data.tags["stride.data_fingerprint"] == tiny_dataset.fingerprint
    assert found.data.tags["mlflow.note.content"] == "# card"
    assert {"mlflow.user", "mlflow.source.name", "stride.code_version"} <= set(found.data.tags)
    assert found.data.params["model.blocks.0.filters"] == "4"
    assert (_artifacts(home, run.run_id) / "weights.bin").read_bytes() == b"\x00\x01"
    assert (_artifacts(home, run.run_id) / "deep/er/text.txt").read_text() == "höhe"


def test_an_opened_run_is_announced_to_who_waits_for_it(
    embedded_tracking: str,
    tiny_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("STRIDE_RUNS_FILE", str(tmp_path / "runs"))
    with tracking.open_run(tiny_recipe, tags={}) as run:
        assert (tmp_path / "runs").read_text() == f"{run.run_id}\n"
    monkeypatch.setenv("STRIDE_RUNS_FILE", str(tmp_path / "none" / "runs"))
    with tracking.open_run(tiny_recipe, tags={}):
        assert "is not announced in STRIDE_RUNS_FILE" in caplog.text  # and the fit goes on


def test_the_steps_of_a_metric_are_its_epochs(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        for epoch in (1, 2, 3):
            run.epoch(epoch, {"lr": 0.1 / epoch})
    history = connect().get_metric_history(run.run_id, "lr")
    assert [(point.step, point.value) for point in history] == [(1, 0.1), (2, 0.05), (3, pytest.approx(0.1 / 3))]


def test_the_data_set_is_recorded_with_its_digest_counts_and_shape(
    embedded_tracking: str, tiny_recipe: Recipe, tiny_dataset: Dataset
) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.dataset(tiny_dataset)
    recorded = _recorded(run.run_id)
    assert recorded.name == "tiny"
    assert recorded.digest == tiny_dataset.fingerprint[:36]
    profile = json.loads(recorded.profile)
    assert (profile["train"], profile["validation"], profile["test"], profile["classes"]) == (18, 6, 12, 3)
    features = json.loads(json.loads(recorded.schema)["mlflow_tensorspec"]["features"])
    assert features[0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, 8, 8, 1]}


def test_a_folder_is_recorded_with_its_path(
    embedded_tracking: str, make_recipe: Any, tiny_dataset: Dataset, tmp_path: Path
) -> None:
    image = {"height": 8, "width": 8, "channels": 1}
    recipe = make_recipe(data={"dataset": "folder", "path": str(tmp_path), "image": image})
    with tracking.open_run(recipe, tags={}) as run:
        run.dataset(tiny_dataset)
    recorded = _recorded(run.run_id)
    assert json.loads(recorded.source) == {"uri": str(tmp_path)}


def test_an_error_in_the_block_fails_the_run_with_its_message_and_is_raised_on(
    embedded_tracking: str, tiny_recipe: Recipe
) -> None:
    with pytest.raises(FitError, match="not finite"), tracking.open_run(tiny_recipe, tags={}) as run:
        raise FitError("the loss is not finite.")
    found = tracking.get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == "the loss is not finite."


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_a_stop_in_the_block_kills_the_run(
    embedded_tracking: str, tiny_recipe: Recipe, stop: type[BaseException]
) -> None:
    with pytest.raises(stop), tracking.open_run(tiny_recipe, tags={}) as run:
        raise stop
    assert tracking.get_run(run.run_id).info.status == "KILLED"


def test_every_run_has_system_metrics_however_short(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        pass
    assert "system/cpu_utilization_percentage" in tracking.get_run(run.run_id).data.metrics


def test_a_table_is_columns_and_rows_that_the_page_knows_of(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe
) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        for _ in range(2):
            run.table("tables/a.json", {"class": ["x", "y"], "support": [1, 2]})
    content = json.loads((_artifacts(home, run.run_id) / "tables/a.json").read_text())
    assert content == {"columns": ["class", "support"], "data": [["x", 1], ["y", 2]]}
    logged = json.loads(tracking.get_run(run.run_id).data.tags["mlflow.loggedArtifacts"])
    assert logged == [{"path": "tables/a.json", "type": "table"}]


def test_a_note_longer_than_a_tag_is_cut_at_a_line(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.note("a line of text\n" * 2000)
    note = tracking.get_run(run.run_id).data.tags["mlflow.note.content"]
    assert len(note) <= 8000
    assert "a line of text\n\n… (cut here" in note


def test_more_parameters_and_tags_than_one_request_takes_are_logged(embedded_tracking: str, make_recipe: Any) -> None:
    recipe = make_recipe(model={"kind": "convnet", "blocks": [{"filters": 4, "pool": "none"}] * 12})
    with tracking.open_run(recipe, tags={f"tag{index}": "x" for index in range(150)}) as run:
        run.tags({f"more{index}": "x" * 9000 for index in range(150)})
    found = tracking.get_run(run.run_id)
    assert found.data.params["model.blocks.11.filters"] == "4"
    assert found.data.tags["tag149"] == "x"
    assert len(found.data.tags["more149"]) == 8000


def test_a_finished_run_is_found_by_recipe_data_and_code(
    embedded_tracking: str, make_recipe: Any, tiny_dataset: Dataset
) -> None:
    recipe = make_recipe()
    identity: dict[str, Any] = {"data_fingerprint": tiny_dataset.fingerprint, "code_version": "1"}
    assert tracking.find_finished(recipe, **identity) is None
    for _ in range(2):
        with tracking.open_run(recipe, tags={"stride.code_version": "1"}) as run:
            run.dataset(tiny_dataset)
        time.sleep(0.002)  # the order is by milliseconds
    assert tracking.find_finished(recipe, **identity) == run.run_id
    assert tracking.find_finished(recipe, **{**identity, "code_version": "2"}) is None
    assert tracking.find_finished(recipe, **{**identity, "data_fingerprint": "x"}) is None
    assert tracking.find_finished(make_recipe(fit={"seed": 1}), **identity) is None


def test_a_failed_or_open_run_is_not_found(embedded_tracking: str, tiny_recipe: Recipe, tiny_dataset: Dataset) -> None:
    identity: dict[str, Any] = {"data_fingerprint": tiny_dataset.fingerprint, "code_version": "1"}
    with tracking.open_run(tiny_recipe, tags={"stride.code_version": "1"}) as run:
        run.dataset(tiny_dataset)
        assert tracking.find_finished(tiny_recipe, **identity) is None
    assert tracking.find_finished(tiny_recipe, **identity) == run.run_id
    connect().set_terminated(run.run_id, "FAILED")
    assert tracking.find_finished(tiny_recipe, **identity) is None


def test_a_run_that_does_not_exist_is_named(embedded_tracking: str) -> None:
    for run_id in ("0" * 32, "../x"):
        with pytest.raises(RegistryError, match="has no such run"):
            tracking.get_run(run_id)


def test_a_deleted_experiment_is_named_with_the_way_out(embedded_tracking: str, tiny_recipe: Recipe) -> None:
    client = connect()
    client.delete_experiment(client.create_experiment("tiny"))
    with (
        pytest.raises(RegistryError, match=r"'tiny'.*was deleted.*experiments restore"),
        tracking.open_run(tiny_recipe, tags={}),
    ):
        pass


def test_two_processes_may_create_the_same_data_base_and_experiment_at_once(home: Path, tmp_path: Path) -> None:
    recipe = '{"data": {"dataset": "digits", "image": {"height": 8, "width": 8, "channels": 1}},'
    recipe += '"model": {"kind": "convnet", "blocks": [{"filters": 4}]}}'
    script = tmp_path / "fit.py"
    script.write_text(
        "import json, sys\n"
        "from contracts.recipe import parse\n"
        "from services.training.tracking import open_run\n"
        f"recipe = parse(json.loads({recipe!r}), name='tiny')\n"
        "import mlflow  # the slow part, before the start\n"
        "print('ready', flush=True)\n"
        "sys.stdin.readline()\n"
        "with open_run(recipe, tags={}) as run:\n"
        "    for epoch in range(1, 31):\n"
        "        run.epoch(epoch, {'train/loss': 1 / epoch})\n"
        "print(run.run_id, run.experiment_id)\n"
    )
    root = Path(__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "STRIDE_HOME": str(home)}
    started = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=environment,
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in started:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    answers = []
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        out, err = process.communicate(timeout=100)
        assert process.returncode == 0, err
        assert err == ""  # MLflow's migrations say nothing
        answers.append(out.split())
    assert answers[0][1] == answers[1][1]
    assert {tracking.get_run(run_id).info.status for run_id, _ in answers} == {"FINISHED"}
    assert len(connect().get_metric_history(answers[0][0], "train/loss")) == 30


def test_a_server_that_is_away_is_told_within_seconds(
    monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe, free_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{free_port}")
    start = time.monotonic()
    with (
        pytest.raises(RegistryError, match=f"127.0.0.1:{free_port}: no answer.*start it") as caught,
        tracking.open_run(tiny_recipe, tags={}),
    ):
        pass
    assert time.monotonic() - start < 10
    assert "secret" not in caught.value.message


def test_a_server_that_takes_connections_and_never_answers_is_told_within_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        with pytest.raises(RegistryError, match="no answer"):
            tracking.find_finished(tiny_recipe, data_fingerprint="x", code_version="x")
        assert time.monotonic() - start < 12


def test_the_users_own_retry_settings_are_kept(monkeypatch: pytest.MonkeyPatch, embedded_tracking: str) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    connect()
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"


def test_a_home_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tiny_recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STRIDE_HOME", str(tmp_path / "file"))
    with (
        pytest.raises(RegistryError, match=r"file/mlflow\.db: it cannot be opened.*set STRIDE_HOME"),
        tracking.open_run(tiny_recipe, tags={}),
    ):
        pass


def test_a_file_that_is_no_data_base_is_named(tiny_recipe: Recipe, home: Path) -> None:
    home.mkdir()
    (home / "mlflow.db").write_bytes(b"no data base at all" * 100)
    with pytest.raises(RegistryError, match=r"mlflow\.db: it cannot be opened"):
        tracking.find_finished(tiny_recipe, data_fingerprint="x", code_version="x")


def test_artifacts_work_in_a_home_with_unusual_characters(
    monkeypatch: pytest.MonkeyPatch, embedded_tracking: str, home: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    odd = tmp_path / "my home #1 50%"
    odd.mkdir()
    (home / "mlflow.db").rename(odd / "mlflow.db")
    monkeypatch.setenv("STRIDE_HOME", str(odd))
    with tracking.open_run(tiny_recipe, tags={}) as run:
        run.file("a.txt", "x")
    assert (_artifacts(odd, run.run_id) / "a.txt").read_text() == "x"


def _killed(recipe: Recipe, *, epochs: int, home: Path, tmp_path: Path, after: str = "") -> str:
    """The id of a run whose process was killed (-9) after it had logged some epochs; `after` is run before that."""
    script = tmp_path / "killed.py"
    script.write_text(
        "import json, os, signal, sys\n"
        "from contracts.recipe import parse\n"
        "from services.training.tracking import open_run\n"
        "recipe = parse(json.loads(sys.argv[1]), name='tiny')\n"
        "with open_run(recipe, tags={'stride.code_version': '1'}) as run:\n"
        f"    for epoch in range(1, {epochs} + 1):\n"
        "        run.epoch(epoch, {'train/loss': 1 / epoch})\n"
        f"    {after or 'pass'}\n"
        "    print(run.run_id, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "STRIDE_HOME": str(home), "PYTHONPATH": str(Path(__file__).parents[3])}
    content = recipe.model_dump_json(exclude={"name"}, exclude_none=True)
    done = subprocess.run(
        [sys.executable, str(script), content], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == -9, done.stderr
    return done.stdout.strip()


def _epochs(run_id: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect().get_metric_history(run_id, "train/loss")]


def test_a_resumed_run_goes_on_and_has_each_epoch_once(
    embedded_tracking: str, home: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    """Killed between the journal and MLflow: what was logged is there, what is repeated is not there twice."""
    run_id = _killed(tiny_recipe, epochs=5, home=home, tmp_path=tmp_path, after="run.tags({'last': 'word'})")
    assert tracking.get_run(run_id).info.status == "RUNNING"
    with tracking.open_run(tiny_recipe, tags={"stride.device": "cpu"}, resume=run_id) as run:
        assert run.run_id == run_id
        for epoch in range(4, 8):  # the checkpoint was of epoch 3
            run.epoch(epoch, {"train/loss": 1 / epoch})
    assert _epochs(run_id) == [(epoch, 1 / epoch) for epoch in range(1, 8)]
    found = tracking.get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["last"] == "word"
    assert found.data.tags["stride.device"] == "cpu"
    assert not list((home / "journal").iterdir())


def test_a_run_that_failed_can_go_on_and_then_has_no_error(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe
) -> None:
    with pytest.raises(FitError), tracking.open_run(tiny_recipe, tags={}) as run:
        _one_epoch_and_then_none(run)
    assert tracking.get_run(run.run_id).data.tags["error"] == "no disk."
    with tracking.open_run(tiny_recipe, tags={}, resume=run.run_id):
        assert tracking.get_run(run.run_id).info.status == "RUNNING"
        run_again = tracking.get_run(run.run_id)
        assert run_again.info.run_name == run.name
    with tracking.open_run(tiny_recipe, tags={}) as other:
        other.epoch(1, {"train/loss": 1.0})
    found = tracking.get_run(run.run_id)
    assert "error" not in found.data.tags
    assert found.info.status == "FINISHED"


def _one_epoch_and_then_none(run: Run) -> None:
    run.epoch(1, {"train/loss": 1.0})
    raise FitError("no disk.")


def test_what_another_machine_has_logged_is_not_logged_again(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe
) -> None:
    """Its journal is not here: MLflow says how far it was."""
    with pytest.raises(KeyboardInterrupt), tracking.open_run(tiny_recipe, tags={}) as run:
        _two_epochs_and_stop(run)
    assert not list((home / "journal").iterdir())
    with tracking.open_run(tiny_recipe, tags={}, resume=run.run_id) as again:
        for epoch in (2, 3):
            again.epoch(epoch, {"train/loss": 1 / epoch, "lr": 0.1})
    assert _epochs(run.run_id) == [(epoch, 1 / epoch) for epoch in (1, 2, 3)]
    assert [point.step for point in connect().get_metric_history(run.run_id, "lr")] == [2, 3]


def _two_epochs_and_stop(run: Run) -> None:
    for epoch in (1, 2):
        run.epoch(epoch, {"train/loss": 1 / epoch})
    raise KeyboardInterrupt


def test_what_another_process_sends_while_the_journal_is_waited_for_is_not_logged_again(
    embedded_tracking: str, home: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect()
    experiment = client.create_experiment("tiny", str(home / "artifacts"))
    run_id = client.create_run(experiment, tags={tracking.RECIPE_HASH: tiny_recipe.digest()}).info.run_id
    with Journal.open(run_id) as kept:
        kept.append("metrics", {"metrics": [["train/loss", 1.0, 1, 1]]})
        kept.append("status", {"status": "KILLED", "at": 1})

    class Waited(Journal):
        @classmethod
        def open(cls, run_id: str, **options: Any) -> Self:
            assert [result.state for result in journal_sync.sync()] == ["sent"]
            return super().open(run_id, **options)

    monkeypatch.setattr(tracking, "Journal", Waited)
    with tracking.open_run(tiny_recipe, tags={}, resume=run_id) as run:
        for epoch in (1, 2):
            run.epoch(epoch, {"train/loss": 1 / epoch})
    assert _epochs(run_id) == [(1, 1.0), (2, 0.5)]


def test_the_system_metrics_of_a_resumed_run_go_on(
    embedded_tracking: str, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    with pytest.raises(KeyboardInterrupt), tracking.open_run(tiny_recipe, tags={}) as run:
        _wait_and_stop()
    with tracking.open_run(tiny_recipe, tags={}, resume=run.run_id):
        time.sleep(0.5)
    points = connect().get_metric_history(run.run_id, "system/cpu_utilization_percentage")
    steps = [point.step for point in sorted(points, key=lambda point: point.timestamp)]
    assert steps == sorted(set(steps))


def _wait_and_stop() -> None:
    time.sleep(0.5)
    raise KeyboardInterrupt


def test_a_run_that_cannot_go_on_says_why(embedded_tracking: str, make_recipe: Any, home: Path) -> None:
    recipe = make_recipe()
    with tracking.open_run(recipe, tags={}) as finished:
        pass
    with pytest.raises(KeyboardInterrupt), tracking.open_run(recipe, tags={}) as stopped:
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), tracking.open_run(recipe, tags={}) as deleted:
        raise KeyboardInterrupt
    connect().delete_run(deleted.run_id)
    other = make_recipe(fit={"seed": 1})
    for run_id, of, reason in (
        ("0" * 32, recipe, "has no such run"),
        (finished.run_id, recipe, "is FINISHED"),
        (deleted.run_id, recipe, "was deleted"),
        (stopped.run_id, other, "is of recipe"),
    ):
        with pytest.raises(NotResumable, match=reason), tracking.open_run(of, tags={}, resume=run_id):
            pass
    assert tracking.get_run(stopped.run_id).info.status == "KILLED"


def test_a_run_that_is_open_elsewhere_is_not_opened_twice(
    embedded_tracking: str, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_WAIT_LOCK_S", 0.1)
    with tracking.open_run(tiny_recipe, tags={}) as run:
        with pytest.raises(Busy), tracking.open_run(tiny_recipe, tags={}, resume=run.run_id):
            pass
        run.epoch(1, {"train/loss": 1.0})
    assert tracking.get_run(run.run_id).info.status == "FINISHED"


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_wait_that_is_no_number_of_seconds_is_refused(
    tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("STRIDE_TRACKING_WAIT", text)
    with pytest.raises(RecipeError, match=f"STRIDE_TRACKING_WAIT is '{text}'"), tracking.open_run(tiny_recipe, tags={}):
        pass
