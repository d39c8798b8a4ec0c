"""Files of initial weights: where they are found, and what is refused before a network sees it."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from contracts.errors import DataError
from services.training import weight_files


@pytest.fixture
def cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory that torchvision downloads to."""
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    return home / "torch" / "hub" / "checkpoints"


def test_a_file_is_looked_for_from_the_working_directory_first(
    home: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = []
    for place in (cache, home / "weights", home / "data" / "weights", tmp_path):
        place.mkdir(parents=True, exist_ok=True)
        (place / "base.pth").touch()
        found.append(weight_files.find("base.pth").absolute().parent)
    assert found == [cache, home / "weights", home / "data" / "weights", tmp_path]


def test_a_file_that_is_not_there_is_refused_with_where_it_was_looked_for(home: Path) -> None:
    with pytest.raises(DataError, match=r"'nowhere\.pth' is not there in .*stride-home/data/weights"):
        weight_files.find("nowhere.pth")
    with pytest.raises(DataError, match=r"'/nowhere\.pth' is not there; give the path of an existing file"):
        weight_files.find("/nowhere.pth")
    with pytest.raises(DataError, match=r"'~no-such-user/base\.pth' is not there"):
        weight_files.find("~no-such-user/base.pth")


def test_a_file_that_would_run_code_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(DataError, match="is not unpickled for safety"):
        weight_files.read(tmp_path / "module.pth")


@pytest.mark.parametrize("name", ["bad.safetensors", "bad.pth"])
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00" * 50)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        weight_files.read(tmp_path / name)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.zeros(1)], {"model": {"a": 1}}])
def test_a_file_that_holds_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(DataError, match=r"other\.pth: it is no state dict"):
        weight_files.read(tmp_path / "other.pth")


def test_missing_imagenet_weights_are_told_with_where_they_were_looked_for_and_how_to_bring_them(
    home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)  # tests have no network
    with pytest.raises(DataError) as caught:
        weight_files.imagenet("squeezenet1_1")
    message = caught.value.message
    assert "\n" not in message
    for place in (home / "data" / "weights", home / "weights", cache):
        assert str(place) in message
    assert "squeezenet1_1-b8a52dc0.pth" in message
    assert "or set model.weights to none" in message


def test_imagenet_weights_are_found_in_torchs_cache_and_in_the_directory_of_weights(home: Path, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "squeezenet1_1-b8a52dc0.pth").touch()
    assert weight_files.imagenet("squeezenet1_1") == cache / "squeezenet1_1-b8a52dc0.pth"
    near = home / "data" / "weights"
    near.mkdir(parents=True)
    save_file({"a": torch.zeros(1)}, near / "squeezenet1_1-imagenet-features.safetensors")
    assert weight_files.imagenet("squeezenet1_1") == near / "squeezenet1_1-imagenet-features.safetensors"
