from __future__ import annotations

from pathlib import Path

import pytest

from contracts.errors import DataError
from services.training.pinning import pin
from tests.services.training.conftest import MakeRecipe


@pytest.mark.parametrize("path", ["~no-such-user/photos", "circle/photos"])
def test_a_path_that_leads_nowhere_is_refused_in_one_sentence(
    path: str, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    image = {"height": 8, "width": 8, "channels": 1}
    recipe = make_recipe(data={"dataset": "folder", "path": path, "image": image})
    with pytest.raises(DataError, match=rf"data\.path '{path}' leads nowhere .*; give the path of a directory\.$"):
        pin(recipe)
