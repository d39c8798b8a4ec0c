"""On a real SQLite store: which run a fit is logged in, after whatever became of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.recipe import Recipe
from services.training import tracking
from services.training.checkpoint_file import Snapshot
from services.training.checkpoints import Checkpoints
from services.training.fit_run import FIT, abandon, open_fit_run
from services.training.mlflow_client import connect

pytestmark = pytest.mark.usefixtures("embedded_tracking")


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Checkpoints]:
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    with Checkpoints(directory, "ours", every_s=60) as opened:
        yield opened


def snapshot(run_id: str, *losses: float) -> Snapshot:
    history = [{"train/loss": loss} for loss in losses]
    return Snapshot(epoch=len(losses), batch=0, tensors={}, state={"history": history, "facts": {"run_id": run_id}})


def logged(recipe: Recipe, kept: Checkpoints, resume: Snapshot | None = None, *epochs: int) -> str:
    with open_fit_run(recipe, tags={}, kept=kept, resume=resume) as run:
        for epoch in epochs:
            run.epoch(epoch, {"train/loss": 1 / epoch})
        if not epochs:
            raise KeyboardInterrupt
    return run.run_id


def stopped(recipe: Recipe, kept: Checkpoints, resume: Snapshot | None = None) -> str:
    with pytest.raises(KeyboardInterrupt):
        logged(recipe, kept, resume)
    return kept.run["run_id"]


def losses(run_id: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in connect().get_metric_history(run_id, "train/loss")]


def test_a_new_fit_opens_a_run_and_remembers_it(tiny_recipe: Recipe, kept: Checkpoints) -> None:
    run_id = logged(tiny_recipe, kept, None, 1)
    assert kept.run["run_id"] == run_id
    assert tracking.get_run(run_id).data.tags[FIT] == kept.run["fit"]


def test_a_stopped_fit_goes_on_in_its_run_with_or_without_a_checkpoint(tiny_recipe: Recipe, kept: Checkpoints) -> None:
    first = stopped(tiny_recipe, kept)
    assert tracking.get_run(first).info.status == "KILLED"
    assert stopped(tiny_recipe, kept) == first
    assert logged(tiny_recipe, kept, snapshot(first, 1.0), 2) == first
    assert tracking.get_run(first).info.status == "FINISHED"


def test_no_epoch_is_logged_twice_and_what_is_missing_is_logged(tiny_recipe: Recipe, kept: Checkpoints) -> None:
    run_id = stopped(tiny_recipe, kept)
    stopped(tiny_recipe, kept, snapshot(run_id, 4.0))
    assert losses(run_id) == [(1, 4.0)]
    # The checkpoint knows of one epoch more than the run
    assert logged(tiny_recipe, kept, snapshot(run_id, 4.0, 3.0), 3) == run_id
    assert losses(run_id) == [(1, 4.0), (2, 3.0), (3, pytest.approx(1 / 3))]


def test_a_run_whose_id_was_not_written_down_in_time_is_found_by_its_tag(
    tiny_recipe: Recipe, kept: Checkpoints
) -> None:
    first = stopped(tiny_recipe, kept)
    fit = kept.run["fit"]
    kept.clear()
    kept.keep_run(fit=fit)  # as a kill right after the run was opened leaves it
    assert logged(tiny_recipe, kept, None, 1) == first
    kept.clear()
    assert logged(tiny_recipe, kept, None, 1) != first


def test_a_run_that_is_gone_or_finished_gives_way_to_a_new_one_with_all_epochs(
    tiny_recipe: Recipe, kept: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    first = stopped(tiny_recipe, kept)
    connect().delete_run(first)
    second = logged(tiny_recipe, kept, snapshot(first, 2.0, 1.5), 3)
    assert second != first
    assert "the fit is logged in a new run, since its own cannot go on" in caplog.text
    assert [step for step, _ in losses(second)] == [1, 2, 3]
    third = logged(tiny_recipe, kept, snapshot(second, 2.0), 2)
    assert third != second
    assert len(losses(second)) == 3


def test_the_run_of_a_killed_fit_that_will_not_go_on_is_closed(tiny_recipe: Recipe, kept: Checkpoints) -> None:
    abandon(kept)  # there is none yet
    run_id = stopped(tiny_recipe, kept)
    connect().update_run(run_id, status="RUNNING")  # as `kill -9` leaves it
    abandon(kept)
    assert tracking.get_run(run_id).info.status == "KILLED"
    finished = logged(tiny_recipe, kept, None, 1)
    abandon(kept)
    assert tracking.get_run(finished).info.status == "FINISHED"
    kept.keep_run(run_id="0" * 32)
    abandon(kept)  # it is no error that it is gone
