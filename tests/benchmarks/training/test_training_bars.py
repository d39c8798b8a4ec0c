from __future__ import annotations

from typing import Any

import pytest

from benchmarks.training.bars import Bar, judge, losses, summarise


def entry(
    name: str,
    *,
    seconds: tuple[float, ...] = (20.0, 10.0, 10.0),
    accuracy: float | None = 0.99,
    seed: int = 0,
    peak: float = 0.8e9,
    start: float = 5.0,
    cpu: float = 2.0,
    **epoch: float,
) -> dict[str, Any]:
    """A contender that fitted 1,000 images an epoch; the first epoch is a slow one."""
    epochs = [
        {
            "epoch": number,
            "seconds": each,
            "cpu_seconds": each * cpu,
            "test_accuracy": 0.9 + 0.03 * number,
            "steps_seconds": each * 0.98,
            "validation_seconds": each * 0.01,
            **epoch,
        }
        for number, each in enumerate(seconds, start=1)
    ]
    done = {"seconds": 1.0, "peak_bytes": peak, **({} if accuracy is None else {"test_accuracy": accuracy})}
    return {
        "name": name,
        "seed": seed,
        "ready": {"seconds": start, "images": 1000, "how": "fp32"},
        "epochs": epochs,
        "done": done,
        "problem": None,
    }


def failed(name: str) -> dict[str, Any]:
    return {"name": name, "seed": 0, "ready": {}, "epochs": [], "done": {}, "problem": "it ended with -9 (killed)"}


def judged(*entries: dict[str, Any], **changes: Any) -> dict[str, Bar]:
    given = {"data_bytes": 50_000_000, "real": True, "whole": True, "published": 0.95, **changes}
    return {
        bar.what.split(" >= ")[0].split(" <= ")[0] + f" {bar.what.split()[-1]}": bar
        for bar in judge("mnist", entries, **given)
    }


def test_the_first_epoch_of_a_fit_is_warm_up_and_medians_are_over_all_seeds() -> None:
    row = summarise([entry("stride"), entry("stride", seed=1, seconds=(99.0, 8.0, 8.0))], "stride", published=0.95)
    assert row is not None
    assert (row.seeds, row.epochs) == (2, 4)
    assert row.rate == pytest.approx((100 + 125) / 2)
    assert (row.slowest, row.fastest) == (100, 125)
    assert row.cpu_ms == pytest.approx(18.0)
    assert row.fit == pytest.approx((41 + 116) / 2)
    assert row.reached == (30.0, 107.0)
    assert row.deviation == 0


def test_one_epoch_is_timed_where_there_is_but_one() -> None:
    row = summarise([entry("stride", seconds=(10.0,))], "stride", published=None)
    assert row is not None
    assert row.rate == 100
    assert row.reached == (None,)


def test_anonymous_memory_is_told_beside_the_peak_where_it_was_seen() -> None:
    seen = {**entry("stride"), "anonymous_bytes": 600_000_000}
    row = summarise([seen, entry("stride", seed=1)], "stride", published=None)
    assert row is not None
    assert row.anonymous_bytes == 600_000_000
    bar = next(bar for bar in judged(seen).values() if bar.what.startswith("peak"))
    assert bar.found == "0.80 GB, of which 0.05 GB are images and 0.60 GB no file's pages"
    row = summarise([entry("stride")], "stride", published=None)
    assert row is not None
    assert row.anonymous_bytes is None


def test_a_contender_that_died_has_no_row() -> None:
    assert summarise([failed("keras")], "keras", published=None) is None


def test_twice_as_fast_is_held_and_less_is_missed() -> None:
    stride = entry("stride", seconds=(9.0, 5.0, 5.0))
    held = judged(stride, entry("keras"), entry("lightning", seconds=(9.0, 9.9, 9.9)))
    assert (held["images/s keras"].held, held["images/s keras"].found) == (True, "2.00 x (200 to 100)")
    assert held["images/s lightning"].held is False
    assert "MISSED, 1.98 x" in held["images/s lightning"].line()


def test_a_peer_that_died_or_stayed_away_is_not_judged_and_says_why() -> None:
    bars = judged(entry("stride"), failed("keras"))
    assert bars["images/s keras"].held is None
    assert bars["images/s keras"].found == "it ended with -9 (killed)"
    assert bars["images/s lightning"].found == "lightning did not take part"


def test_a_stride_that_died_misses() -> None:
    (bar,) = judge("mnist", [failed("stride")], data_bytes=1, real=True, whole=True, published=None)
    assert bar.held is False
    assert "killed" in bar.found


def test_accuracy_is_judged_within_the_spread_and_only_where_it_means_something() -> None:
    what = "test accuracy not below keras' keras'"

    def bar(*, ours: float, theirs: float, **changes: Any) -> Bar:
        return judged(entry("stride", accuracy=ours), entry("keras", accuracy=theirs), **changes)[what]

    assert bar(ours=0.99, theirs=0.991).held
    assert not bar(ours=0.98, theirs=0.991).held
    assert bar(ours=0.1, theirs=0.991, real=False).held is None
    assert bar(ours=0.1, theirs=0.991, whole=False).held is None
    seeds = [entry("stride", accuracy=0.985), entry("keras", accuracy=0.990), entry("keras", accuracy=0.992, seed=1)]
    assert judged(*seeds)[what].held is False  # two seeds 0.0014 apart excuse no 0.006


def test_the_loop_is_held_against_the_bare_step() -> None:
    what = f"the loop's steps {'images/s'}"
    bare = entry("bare", accuracy=None, images=500)
    # 1,000 images in 9.8 s against 500 in 5.0 or 4.5 s
    near = judged(entry("stride"), {**bare, "epochs": [{**e, "steps_seconds": 5.0} for e in bare["epochs"]]})
    far = judged(entry("stride"), {**bare, "epochs": [{**e, "steps_seconds": 4.5} for e in bare["epochs"]]})
    assert near[what].held
    assert near[what].found.startswith("1.020 ")
    assert far[what].held is False


def test_what_is_neither_steps_nor_validation_is_overhead() -> None:
    what = "logging and checkpoints epoch"
    assert judged(entry("stride"))[what].held
    bar = judged(entry("stride", validation_seconds=0.0, steps_seconds=9.7))[what]
    assert (bar.held, bar.found.split()[0]) == (False, "3.00%")


def test_memory_is_held_to_the_images_and_one_gigabyte() -> None:
    what = "peak resident memory GB"
    assert judged(entry("stride", peak=1.05e9))[what].held
    assert judged(entry("stride", peak=1.06e9))[what].held is False


def test_where_stride_loses_is_said() -> None:
    rows = [
        row
        for name, options in {
            "stride": {"start": 9.0, "accuracy": 0.98},
            "keras": {"start": 4.0, "seconds": (30.0, 20.0, 20.0), "peak": 2e9, "accuracy": 0.97},
            "bare": {"accuracy": None, "seconds": (1.0, 1.0)},
        }.items()
        if (row := summarise([entry(name, **options)], name, published=None)) is not None  # type: ignore[arg-type]
    ]
    assert losses(rows) == ["seconds from start to the first epoch: keras 4.0, Stride 9.0."]
