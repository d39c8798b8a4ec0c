from __future__ import annotations

import pytest

from contracts.errors import RecipeError
from services.training.distributed.place import Place

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_the_environment_of_torchrun_names_a_place() -> None:
    place = Place.from_environment({**TORCHRUN, "TORCHELASTIC_RESTART_COUNT": "2"})
    assert place == Place(rank=1, size=4, local_rank=1, address="127.0.0.1", port=29500, restarts=2, hosted=False)
    assert Place.from_environment({}) is None
    assert Place.from_environment({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"RANK": "one"}, r"^RANK is 'one', a whole number was expected; start the workers with torchrun\.$"),
        ({"RANK": "4"}, r"^RANK is 4 of WORLD_SIZE 4; start"),
        ({"MASTER_ADDR": ""}, r"^RANK and WORLD_SIZE are set, but not MASTER_ADDR and MASTER_PORT; start"),
    ],
)
def test_half_a_place_is_refused(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(RecipeError, match=sentence):
        Place.from_environment({**TORCHRUN, **changes})
