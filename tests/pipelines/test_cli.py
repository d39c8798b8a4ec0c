"""The `stride` command: answers, exit codes and errors, called as a script calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from contracts.errors import DataError, StrideError
from pipelines.cli.console import table
from pipelines.cli.main import app, guard, main
from pipelines.cli.servers import _follow
from pipelines.processes import Record

COMMANDS = [str(command.name) for command in app.registered_commands]
# Small enough for a second, good enough for nothing.
TINY = ("--set", "fit.epochs=1", "--set", "model.blocks.1.filters=4", "--set", "model.head.units=[8]")


def stride(*arguments: str) -> int:
    """Call the command in this process; its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    code = ended.value.code
    assert isinstance(code, int)
    return code


def answered(capsys: pytest.CaptureFixture[str]) -> Any:
    """Standard output, which must be one JSON document and nothing else."""
    return json.loads(capsys.readouterr().out)


def test_every_command_of_the_contract_is_there() -> None:
    models = {"ship", "train", "export", "promote", "rollback", "history", "challenge", "tune"}
    others = {"recipes", "data", "serve", "stop", "predict", "look", "reproduce", "doctor", "sync", "sweep"}
    assert set(COMMANDS) == models | others
    assert set(get_command(app).commands) - set(COMMANDS) == {"bench", "jobs"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stride(command, "--help") == 0
    help_text = capsys.readouterr().out
    assert "Example" in help_text
    assert f"  stride {command}" in help_text


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["train"], ["train", "digits", "--nonsense"], ["recipes", "--yaml"]]
)
def test_bad_usage_exits_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert stride(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_a_mistyped_recipe_is_one_sentence_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("train", "digitz") == 2
    assert capsys.readouterr().err == "error: recipe 'digitz' is not known; did you mean 'digits'?\n"


def test_a_mistyped_key_is_one_sentence_with_the_nearest_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("train", "digits", "--set", "optimizer.nam=adam") == 2
    assert "key 'optimizer.nam' is not known; did you mean 'optimizer.name'?" in capsys.readouterr().err


def test_a_number_of_workers_that_cannot_be_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("train", "digits", "--workers", "0") == 2
    assert capsys.readouterr().err.startswith("error: --workers is 0, a whole number from 1 was expected;")
    assert stride("train", "digits", "--workers", "33") == 2
    assert "a batch of recipe 'digits' has 32 images" in capsys.readouterr().err


def test_recipes_tells_the_published_parameter_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("recipes", "--json") == 0
    recipes = {each["name"]: each for each in answered(capsys)}
    counts = {name: (each["parameters"], each["trainable_parameters"]) for name, each in recipes.items()}
    assert counts["mnist"] == (93_322, 93_322)
    assert counts["fashion"] == (468_586, 468_202)
    assert counts["cifar10"] == (17_962, 17_962)
    assert counts["deer-horse"] == (684_097, 684_097)
    assert counts["folder"] == (None, None)  # its classes are known once its images are seen
    for each in recipes.values():
        published = each["published"]
        assert published["parameters"] in (None, each["parameters"])
        assert published["trainable_parameters"] in (None, each["trainable_parameters"])
    assert recipes["deer-horse"]["classes"] == 2


@pytest.mark.parametrize("backbone", ["resnet18", "regnet_x_400mf"])
def test_recipes_counts_the_parameters_of_any_backbone(
    backbone: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    image = {"height": 32, "width": 32, "channels": 1}
    path.write_text(
        yaml.safe_dump({"data": {"dataset": "digits", "image": image}, "model": {"kind": "backbone", "name": backbone}})
    )
    assert stride("recipes", str(path), "--json") == 0
    (found,) = answered(capsys)
    assert found["trainable_parameters"] > 5_000_000


def test_recipes_prints_a_table_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("recipes", "mnist") == 0
    text = capsys.readouterr().out
    assert "93,322" in text
    assert "0.9902" in text


def test_a_recipe_printed_as_yaml_is_whole_and_carries_the_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("recipes", "digits", "--yaml", "--set", "optimizer.lr=3e-4") == 0
    content = yaml.safe_load(capsys.readouterr().out)
    assert content["optimizer"]["lr"] == 3e-4
    assert content["export"]["opset"] == 20  # a default, which the file does not name


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("recipes", "--schema") == 0
    assert "optimizer" in answered(capsys)["properties"]


def test_data_counts_the_images_of_every_split(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("data", "digits", "--json") == 0
    report = answered(capsys)
    splits = report["splits"]
    assert sum(split["images"] for split in splits.values()) == 1797
    assert sum(splits["test"]["per_class"].values()) == splits["test"]["images"]
    assert len(report["fingerprint"]) == 64
    assert report["skipped"] == []


def test_data_names_the_files_of_a_folder_that_it_leaves_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    for label, level in (("dark", 10), ("light", 200)):
        (tmp_path / label).mkdir()
        for number in range(10):
            Image.new("RGB", (8, 8), (level + number,) * 3).save(tmp_path / label / f"{number}.png")
    (tmp_path / "dark" / "broken.png").write_bytes(b"no image")
    options = [f"data.path={tmp_path}", "data.image.height=8", "data.image.width=8"]
    assert stride("data", "folder", *[part for option in options for part in ("--set", option)], "--json") == 0
    report = answered(capsys)
    assert report["labels"] == ["dark", "light"]
    assert [Path(skipped["path"]).name for skipped in report["skipped"]] == ["broken.png"]


def test_data_says_how_to_give_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("data", "folder") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: data.path 'images' does not exist in ")
    assert "say where your images are with --set data.path=DIR" in error
    assert error.count("\n") == 1


@pytest.mark.usefixtures("embedded_tracking")
def test_the_way_from_train_to_history(capsys: pytest.CaptureFixture[str]) -> None:
    """One run of the commands in the order in which a user calls them; each is cheap only after the one before."""
    assert stride("train", "digits", *TINY, "--json") == 0
    trained = answered(capsys)
    wanted = {"run_id", "test_accuracy", "test_loss", "images_per_second", "epochs", "seconds", "device", "precision"}
    assert wanted <= set(trained)
    assert trained["reused"] is False

    assert stride("export", trained["run_id"], "--json") == 0
    bundle = answered(capsys)
    assert Path(bundle["path"], "model.onnx").is_file()

    assert stride("promote", trained["run_id"], "--json") == 2  # after one epoch the recipe's floor of 0.95 is far
    captured = capsys.readouterr()
    assert json.loads(captured.out)["action"] == "refuse"
    assert captured.err.splitlines()[-1].startswith("error: run ")

    assert stride("ship", "digits", *TINY, "--json") == 2
    refused = answered(capsys)
    assert refused["verdict"] == "refused"
    assert refused["version"] is None
    assert [run["run_id"] for run in refused["runs"]] == [trained["run_id"]]  # reused, not fitted again

    assert stride("ship", "digits", *TINY, "--set", "gate.min_accuracy=0", "--json") == 0
    shipped = answered(capsys)
    assert (shipped["verdict"], shipped["model"], shipped["version"]) == ("accepted", "digits", "1")
    assert shipped["reasons"]

    assert stride("history", "digits", "--json") == 0
    assert [entry["action"] for entry in answered(capsys)] == ["promote", "refuse", "refuse"]
    assert stride("history") == 0
    assert "promote" in capsys.readouterr().out

    assert stride("rollback", "digits") == 1
    assert "no former champion" in capsys.readouterr().err


def test_predict_without_a_service_says_how_to_start_it(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STRIDE_PORT", str(free_port))
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    assert stride("predict", str(tmp_path / "a.png")) == 1
    assert f"no answer from http://127.0.0.1:{free_port}/v1/predict" in capsys.readouterr().err


def test_a_server_that_ends_by_itself_is_named_with_its_own_log(tmp_path: Path) -> None:
    def record(name: str, process: subprocess.Popen[bytes]) -> Record:
        log = tmp_path / f"{name}.log"
        log.touch()
        values = {"identity": "", "url": "", "health": "", "log": str(log), "token": "", "started": 0.0}
        return Record(name=name, pid=process.pid, **values)  # type: ignore[arg-type]

    with (
        subprocess.Popen([sys.executable, "-c", "pass"]) as mlflow,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as inference,
    ):
        with pytest.raises(StrideError, match=r"mlflow ended by itself; its log is .*mlflow\.log"):
            _follow([record("mlflow", mlflow), record("inference", inference)])
        inference.kill()


def test_stop_with_nothing_to_stop_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert stride("stop") == 0
    assert "nothing to stop" in capsys.readouterr().out


def test_an_error_shows_its_traceback_only_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise DataError("no images.")

    assert guard(fail) == 1
    assert capsys.readouterr().err == "error: no images.\n"
    monkeypatch.setenv("STRIDE_DEBUG", "1")
    with pytest.raises(DataError):
        guard(fail)


def test_an_unexpected_error_is_one_sentence_too(capsys: pytest.CaptureFixture[str]) -> None:
    facts: dict[str, int] = {}
    assert guard(lambda: facts["nothing"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: unexpected KeyError: 'nothing'")
    assert error.count("\n") == 1


@pytest.mark.usefixtures("embedded_tracking")
def test_an_interrupted_fit_exits_130_without_a_traceback() -> None:
    command = [sys.executable, "-m", "pipelines.cli", "train", "digits", "--set", "fit.epochs=100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        seen = ""
        while not seen.startswith("epoch "):
            seen = process.stderr.readline()
            assert seen, "the fit ended by itself"
        process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in rest


def test_a_table_has_its_numbers_to_the_right() -> None:
    assert table([("a", 1, 0.5), ("bb", 1234, None)], ("name", "n", "p")) == (
        "name      n       p\na         1  0.5000\nbb    1,234       -"
    )
