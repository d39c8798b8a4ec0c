"""One real sweep on an embedded Ray, killed (SIGKILL) in the middle and gone on with."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from contracts.errors import DataError, FitError, RecipeError, RequestError
from pipelines.sweeps import parent
from pipelines.sweeps.ledger import Ledger
from pipelines.sweeps.run import Options, sweep
from tests.pipelines.conftest import tiny_recipe

pytestmark = pytest.mark.timeout(400)  # the fixture runs a sweep twice, and Ray starts slowly on a busy machine

TRIALS = 4
SPACE = "optimizer.lr=loguniform(1e-6, 1e-1)"


@dataclass(frozen=True)
class Swept:
    home: Path
    recipe: Path
    begun: int
    """Trials that had begun when the sweep was killed."""
    over: int
    said: str
    """By the sweep that went on."""
    answer: dict[str, Any]

    def command(self, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(self.recipe, *more), env=environment(self.home), capture_output=True, text=True, check=False
        )


def command(recipe: Path, *more: str) -> list[str]:
    base = [sys.executable, "-m", "pipelines.cli", "sweep", str(recipe), "--trials", str(TRIALS), "--space", SPACE]
    return [*base, "--grace", "2", "--json", *more]


def environment(home: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("STRIDE_", "MLFLOW_", "RAY_"))}
    return {**kept, "STRIDE_HOME": str(home), "STRIDE_DEVICE": "cpu", "PYTHONPATH": str(Path(__file__).parents[3])}


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Swept:
    directory = tmp_path_factory.mktemp("sweep")
    home, recipe = directory / "home", directory / "tiny.yaml"
    home.mkdir()
    shutil.copy(migrated_database, home / "mlflow.db")
    content = tiny_recipe(fit={"epochs": 4, "batch_size": 64, "precision": "fp32"}).model_dump(mode="json")
    recipe.write_text(yaml.safe_dump({key: value for key, value in content.items() if key != "name"}))
    pipe = subprocess.PIPE
    with subprocess.Popen(command(recipe), env=environment(home), stdout=pipe, stderr=pipe) as first:
        end = time.monotonic() + 180
        book = None
        while time.monotonic() < end and first.poll() is None:
            files = list(home.glob("sweeps/*/trials.jsonl"))
            book = Ledger(files[0]) if files else None
            if book is not None and book.over():
                break
            time.sleep(0.1)
        assert first.poll() is None, first.communicate()
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert book is not None
    again = Ledger(book.path)
    done = subprocess.run(
        command(recipe, "--resume"), env=environment(home), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Swept(home, recipe, len(again.trials), len(again.over()), done.stderr, json.loads(done.stdout))


def runs(swept: Swept) -> tuple[MlflowClient, list[Run]]:
    client = MlflowClient(f"sqlite:///{swept.home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id]))


def test_a_killed_sweep_ends_with_exactly_the_trials_that_were_asked_for(swept: Swept) -> None:
    assert 1 <= swept.over < TRIALS
    assert f"going on with {swept.over} of {TRIALS} trials done" in swept.said
    assert [trial["number"] for trial in swept.answer["trials"]] == list(range(TRIALS))
    assert {trial["state"] for trial in swept.answer["trials"]} <= {"finished", "stopped"}


def test_every_trial_is_one_child_of_one_parent(swept: Swept) -> None:
    _, found = runs(swept)
    parents = [run for run in found if "stride.trial" not in run.data.tags]
    children = [run for run in found if "stride.trial" in run.data.tags]
    assert [run.info.run_id for run in parents] == [swept.answer["run_id"]]
    assert parents[0].info.status == "FINISHED"
    assert sorted(int(run.data.tags["stride.trial"]) for run in children) == list(range(TRIALS))
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {swept.answer["run_id"]}
    by_trial = {trial["number"]: trial for trial in swept.answer["trials"]}
    for run in children:
        trial = by_trial[int(run.data.tags["stride.trial"])]
        assert trial["run_id"] == run.info.run_id
        assert run.info.status == {"finished": "FINISHED", "stopped": "KILLED"}[trial["state"]]
        assert float(run.data.params["optimizer.lr"]) == trial["values"]["optimizer.lr"]


def test_the_best_trial_is_the_best_finished_one_and_can_be_exported(swept: Swept) -> None:
    finished = [trial for trial in swept.answer["trials"] if trial["state"] == "finished"]
    best = swept.answer["best"]
    assert best["value"] == max(trial["value"] for trial in finished)
    client, _ = runs(swept)
    assert client.get_run(best["run_id"]).data.metrics["best/validation_accuracy"] == best["value"]
    assert "weights.safetensors" in {file.path for file in client.list_artifacts(best["run_id"])}


def test_the_parent_holds_the_summary(swept: Swept) -> None:
    client, _ = runs(swept)
    run_id = swept.answer["run_id"]
    assert {file.path for file in client.list_artifacts(run_id, "sweep")} >= {
        "sweep/parallel-coordinates.png",
        "sweep/history.png",
        "sweep/trials.json",
    }
    run = client.get_run(run_id)
    assert run.data.params["space.optimizer.lr"] == "loguniform(1e-06, 0.1)"
    assert run.data.metrics["best/validation_accuracy"] == swept.answer["best"]["value"]
    assert run.data.metrics["sweep/finished"] + run.data.metrics["sweep/stopped"] == TRIALS
    assert run.data.tags["stride.sweep.best_run"] == swept.answer["best"]["run_id"]
    assert f"**{TRIALS} trials**" in run.data.tags["mlflow.note.content"]
    assert "stride.recipe_hash" not in run.data.tags  # or `stride train` would take it for a fit


def test_no_checkpoint_and_no_file_of_rays_is_left(swept: Swept) -> None:
    assert not list(swept.home.glob("checkpoints/*/*.safetensors"))
    assert not list(swept.home.glob("sweeps/*/ray"))


def test_a_sweep_that_is_done_is_taken_as_it_is(swept: Swept) -> None:
    done = swept.command()
    assert done.returncode == 0, done.stderr
    again = json.loads(done.stdout)
    assert again["reused"]
    assert again["best"]["run_id"] == swept.answer["best"]["run_id"]
    assert len(runs(swept)[1]) == TRIALS + 1


@pytest.mark.usefixtures("embedded_tracking")
@pytest.mark.parametrize("content", ["", "{", "[]", '{"done": "no"}'])
def test_a_damaged_file_of_a_sweep_is_one_sentence(home: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[Path] = []

    def stop(*_: object, **__: object) -> None:  # nothing is to be fitted here
        began.append(home)
        raise FitError("begun.")

    monkeypatch.setattr(parent, "open_parent", stop)
    options = Options(recipe="digits", space=(SPACE,))
    with pytest.raises(FitError, match="begun"):
        sweep(options, say=print)
    (about,) = home.glob("sweeps/*/sweep.json")
    assert set(json.loads(about.read_text())) == {"sweep", "done"}
    about.write_text(content)
    with pytest.raises(FitError, match=r"sweep file '.*/sweep\.json' is damaged \(.*--force, which begins"):
        sweep(options, say=print)
    with pytest.raises(FitError, match="begun"):
        sweep(options, say=print, force=True)
    assert len(began) == 2


@pytest.mark.usefixtures("embedded_tracking")
def test_what_cannot_be_swept_is_refused_before_ray_is_started() -> None:
    with pytest.raises(RecipeError, match=r"--gpus is 0\.001; give 0 for none, or at least 0\.05"):
        sweep(Options(recipe="digits", space=(SPACE,), gpus=0.001), say=print)
    with pytest.raises(RecipeError, match="--metric is 'accuracy'"):
        sweep(Options(recipe="digits", space=(SPACE,), metric="accuracy"), say=print)
    with pytest.raises(RecipeError, match=r"did you mean 'optimizer\.lr'"):
        sweep(Options(recipe="digits", space=("optimizer.lrs=uniform(0.1, 1)",)), say=print)
    with pytest.raises(RequestError, match="there is none to resume"):
        sweep(Options(recipe="digits", space=(SPACE,)), say=print, resume=True)
    with pytest.raises(DataError):
        sweep(Options(recipe="folder", overrides=("data.path=/nowhere",), space=(SPACE,)), say=print)
