from __future__ import annotations

import pytest

from services.training.group import ALONE, Group


def worker(rank: int, size: int) -> Group:
    group = Group()
    group.rank, group.size = rank, size
    return group


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(("start", "stop"), [(0, 64), (64, 69), (10, 12), (5, 5)])
def test_the_parts_of_all_workers_are_the_whole_and_differ_by_one_row_at_most(size: int, start: int, stop: int) -> None:
    parts = [worker(rank, size).share(start, stop) for rank in range(size)]
    assert [row for begin, end in parts for row in range(begin, end)] == list(range(start, stop))
    lengths = [end - begin for begin, end in parts]
    assert max(lengths) - min(lengths) <= 1


def test_one_by_itself_has_all_and_is_the_first() -> None:
    assert ALONE.first
    assert ALONE.share(3, 9) == (3, 9)
    assert not worker(1, 2).first
