from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image

from contracts.errors import DataError, NotAnImage, RegistryError
from contracts.images import encode_png
from pipelines import graph as onnx_graph
from pipelines.cli.main import main
from pipelines.export import export
from pipelines.look import look
from pipelines.promotion import submit

if TYPE_CHECKING:
    from services.training.data.dataset import Dataset


@pytest.fixture
def digit(digits: Dataset, tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    path.write_bytes(encode_png(digits.test.images[0]))
    return path


def test_a_run_looks_at_an_image_and_the_files_show_it(
    make_run: Any, digit: Path, digits: Dataset, graphs: dict[str, Any], tmp_path: Path
) -> None:
    run_id = make_run("good")
    seen = look(digit, run_id=run_id, output=tmp_path / "seen")
    assert [Path(file).name for file in seen.files] == ["grad-cam.png", "activations-block1.png", "filters.png"]
    for file in seen.files:
        with Image.open(file) as picture:
            assert min(picture.size) > 70
    with torch.no_grad():
        expected = graphs["good"](torch.from_numpy(digits.test.images[:1])).numpy()[0]
    assert seen.label == digits.labels[int(expected.argmax())]
    assert seen.probability == pytest.approx(float(expected.max()), abs=1e-6)
    assert [value for _, value in seen.top] == sorted(expected.tolist(), reverse=True)[:5]
    assert (seen.run_id, seen.model, seen.version) == (run_id, "tiny", None)


@pytest.mark.usefixtures("quick_export")
def test_without_a_run_the_champion_looks(make_run: Any, digit: Path, home: Path) -> None:
    with pytest.raises(RegistryError, match="no model has been promoted yet"):
        look(digit)
    run_id = make_run("good")
    submit(export(run_id), run_id)
    seen = look(digit)
    assert (seen.model, seen.version, seen.run_id) == ("tiny", "1", run_id)
    assert Path(seen.files[0]).parent == home / "look" / "digit"
    assert look(digit, model="tiny").run_id == run_id
    with pytest.raises(RegistryError, match="model 'other' has no champion"):
        look(digit, model="other")


def test_what_is_no_image_is_told_before_anything_is_written(make_run: Any, tmp_path: Path) -> None:
    run_id = make_run("useless")
    text = tmp_path / "text.png"
    text.write_text("no image")
    with pytest.raises(NotAnImage):
        look(text, run_id=run_id, output=tmp_path / "seen")
    with pytest.raises(DataError, match="cannot be read"):
        look(tmp_path / "nowhere.png", run_id=run_id, output=tmp_path / "seen")
    assert not (tmp_path / "seen").exists()


def test_a_directory_that_cannot_be_written_is_an_error_in_one_sentence(
    make_run: Any, digit: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="give another one with --output"):
        look(digit, run_id=make_run("useless"), output=digit / "seen")


def test_the_command_answers_in_json_and_names_its_files(
    make_run: Any, digit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_id = make_run("good")
    with pytest.raises(SystemExit) as ended:
        main(["look", str(digit), "--run", run_id, "-o", str(tmp_path / "seen"), "--json"])
    assert ended.value.code == 0
    content = json.loads(capsys.readouterr().out)
    assert content["run_id"] == run_id
    assert content["label"] == content["top"][0]["label"]
    assert all(Path(file).is_file() for file in content["files"])
    with pytest.raises(SystemExit) as ended:
        main(["look", str(digit), "--run", run_id, "--model", "tiny"])
    assert ended.value.code == 2
    assert "leave one out" in capsys.readouterr().err


def test_the_exported_graph_carries_the_temperature(graphs: dict[str, Any], digits: Dataset) -> None:
    import copy

    calibrated = copy.deepcopy(graphs["good"])
    calibrated.temperature.fill_(2.5)
    model = onnx_graph.to_onnx(calibrated, image=_spec(digits), opset=20)
    images = digits.test.images[:50]
    answers = onnx_graph.predict(onnx_graph.open_session(model), images, batch_size=50)
    with torch.no_grad():
        served, plain = (graph(torch.from_numpy(images)).numpy() for graph in (calibrated, graphs["good"]))
    np.testing.assert_allclose(answers, served, atol=1e-5)
    np.testing.assert_array_equal(answers.argmax(axis=1), plain.argmax(axis=1))
    assert float(np.abs(answers - plain).max()) > 0.1


def _spec(digits: Dataset) -> Any:
    from contracts.images import ImageSpec

    height, width, channels = digits.test.images.shape[1:]
    return ImageSpec(height=height, width=width, channels=channels)
