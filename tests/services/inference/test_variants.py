"""services.inference.variants: who answers a request, decided once and the same way again."""

from __future__ import annotations

import math

import pytest

from contracts.errors import RequestError
from services.inference.variants import Choice, choose, draw


@pytest.mark.parametrize("percent", [1, 10, 25, 50, 90])
@pytest.mark.parametrize("form", ["{}", "request-{:08d}", "{:032x}"])
def test_the_share_of_a_canary_lies_within_the_bounds_of_chance(percent: int, form: str) -> None:
    n = 10_000
    fallen = sum(choose([(b"x-request-id", form.format(k).encode())]).falls_on_challenger(percent) for k in range(n))
    share = percent / 100
    assert abs(fallen - n * share) < 4 * math.sqrt(n * share * (1 - share))


def test_a_request_that_is_sent_again_with_its_id_goes_the_same_way() -> None:
    assert choose([(b"x-request-id", b"a")]) == choose([(b"accept", b"*/*"), (b"x-request-id", b"a")])


def test_requests_without_an_id_are_drawn_anew() -> None:
    assert len({choose([]).draw for _ in range(20)}) == 20


def test_nobody_falls_on_a_challenger_of_0_percent_and_everybody_on_one_of_100() -> None:
    draws = [draw(str(k).encode()) for k in range(1000)]
    assert not any(Choice(None, each).falls_on_challenger(0) for each in draws)
    assert all(Choice(None, each).falls_on_challenger(100) for each in draws)


@pytest.mark.parametrize(("value", "challenger"), [(b"challenger", True), (b" Champion ", False)])
def test_the_header_decides_whatever_the_share(value: bytes, challenger: bool) -> None:
    choice = choose([(b"x-stride-variant", value)])
    assert [choice.falls_on_challenger(percent) for percent in (0, 100)] == [challenger] * 2


def test_another_value_of_the_header_is_refused_with_what_may_stand_there() -> None:
    with pytest.raises(RequestError, match="X-Stride-Variant is 'canary'; give champion or challenger"):
        choose([(b"x-stride-variant", b"canary")])
