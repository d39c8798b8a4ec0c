from __future__ import annotations

import torch

from services.training.augment.draws import Shared, integers, uniform


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_some_rows_of_a_batch_get_the_numbers_that_they_have_in_all_of_it() -> None:
    rows = torch.tensor([4, 0, 5])
    shared, whole = Shared(seeded(), 7, rows), seeded()
    for each in ((), (6,)):
        assert torch.equal(uniform(3, shared, each=each), uniform(7, whole, each=each)[..., rows])
        assert torch.equal(integers(9, 3, shared, each=each), integers(9, 7, whole, each=each)[..., rows])
