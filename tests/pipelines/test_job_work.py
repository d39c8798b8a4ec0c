"""pipelines.job_work: what a request to the training service comes to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from contracts.errors import RecipeError, RequestError
from pipelines import recipe_files
from pipelines.job_work import resolve, share_of
from services.training.jobs.job import RECIPE_FILE, Share
from services.training.jobs.request import JobRequest, parse


def test_a_request_becomes_the_command_that_one_would_type() -> None:
    work = resolve(parse(b'{"kind": "ship", "recipe": "digits", "set": {"optimizer.lr": 1e-5}, "force": true}'))
    assert work.command[1:] == ("-m", "pipelines.cli", "ship", RECIPE_FILE, "--json", "--force")
    assert (work.recipe, work.model_name) == ("digits", "digits")
    assert "lr: 1.0e-05" in work.document


def test_a_recipe_by_name_is_the_same_fit_as_on_the_command_line(tmp_path: Path) -> None:
    work = resolve(JobRequest(kind="train", recipe="mnist", set={"fit.epochs": 3}))
    path = tmp_path / "recipe.yaml"
    path.write_text(work.document)
    typed = recipe_files.load("mnist", ["fit.epochs=3"])
    assert recipe_files.load(str(path)) == typed


def test_a_whole_recipe_may_be_sent() -> None:
    document = recipe_files.load("digits").model_dump(mode="json")
    work = resolve(JobRequest(kind="train", recipe={**document, "name": "mine"}))
    assert work.recipe == "mine"


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ("/etc/passwd", "recipe '/etc/passwd' is a path; give a recipe's name, or the recipe itself as an object."),
        ("../digits.yaml", "recipe '../digits.yaml' is a path; "),
        ({"data": {}}, "recipe: key 'name' is missing; add it."),
        ({"name": "x", "data": {"dataset": "digits"}}, "recipe 'x': key 'data.image' is missing; add it."),
        ({"name": "../x", "data": {}, "model": {}}, "recipe '../x': "),
    ],
)
def test_what_is_no_recipe_is_refused_and_no_file_is_read(recipe: Any, sentence: str) -> None:
    with pytest.raises(RecipeError) as refused:
        resolve(JobRequest(kind="train", recipe=recipe))
    assert refused.value.message.startswith(sentence)


def test_a_sweep_is_checked_before_it_is_queued() -> None:
    request = JobRequest(kind="sweep", recipe="digits", trials=4, space={"optimizer.lr": "loguniform(1e-4, 1e-1)"})
    assert resolve(request).command[-2:] == ("--trials=4", "--space=optimizer.lr=loguniform(1e-4, 1e-1)")
    with pytest.raises(RecipeError, match=r"optimizer\.nr"):
        resolve(JobRequest(kind="sweep", recipe="digits", trials=4, space={"optimizer.nr": "uniform(0, 1)"}))


def test_a_job_gets_the_usual_share_or_what_it_asks_for_and_no_more_than_there_is() -> None:
    usual = Share(cpus=4, gpus=1)
    train = JobRequest(kind="train", recipe="digits")
    assert share_of(train, usual, available=2) == usual
    assert share_of(train.model_copy(update={"gpus": 0.5}), usual, available=2) == Share(cpus=4, gpus=0.5)
    with pytest.raises(RequestError, match="gpus is 3; this machine has 2, ask for at most that many"):
        share_of(train.model_copy(update={"gpus": 3.0}), usual, available=2)
    sweep = JobRequest(kind="sweep", recipe="digits", trials=1, space={"optimizer.lr": "uniform(0, 1)"})
    assert share_of(sweep, usual, available=2) == Share()
