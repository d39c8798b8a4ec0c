"""pipelines.search on a real network of the digits. What a machine's clock says is given by the test: `Clock`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from contracts.image_spec import ImageSpec
from contracts.recipe import Tune
from pipelines import graph, measure, quantize
from pipelines.candidates import Candidate, Failed, Maker
from pipelines.comparison import Found
from pipelines.measure import Timing
from pipelines.search import Search
from services.training.data.dataset import Dataset, Split

IMAGE = ImageSpec(height=8, width=8, channels=1)
INT8, MIXED, PLAIN = "int8", "int8, first layer fp32", "fp32, plain layout"


class Clock:
    """In the place of `measure.interleaved`: calls are not made, and take the seconds that the test says."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = {"fp32": 1.0, PLAIN: 2.0, INT8: 1.0, MIXED: 1.0, **seconds}
        self.threads: dict[int, float] = {}
        self.busy = 1.0

    def __call__(self, calls: Mapping[str, Callable[[], object]], **_options: float) -> dict[str, Timing]:
        found = {}
        for name in calls:
            what, _, size = name.rpartition(":")
            took = self.threads.get(int(what), 1.0) if what.isdigit() else self.seconds[what]
            took *= 64 if size == "large" else 1
            found[name] = Timing(cpu_s=took, wall_s=took * self.busy)
        return found


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measure, "interleaved", made)
    monkeypatch.setattr(graph, "cores", lambda: 1)
    return made


@pytest.fixture
def find(graphs: dict[str, Any], exported_graphs: dict[int, bytes], digits: Dataset) -> Callable[..., Found]:
    def run(*, validation: Split | None = None, **limits: Any) -> Found:
        search = Search(
            exported_graphs[id(graphs["good"])],
            image=IMAGE,
            train=digits.train,
            validation=validation or digits.validation,
            limits=Tune.model_validate({"seconds": 60.0, "max_loss": 0.02, "min_images": 1, **limits}),
            cuda=False,
        )
        return search.run()

    return run


def verdicts(found: Found) -> dict[str, str]:
    return {row.name: row.verdict for row in found.rows}


def test_a_graph_that_saves_enough_and_keeps_the_accuracy_is_chosen(clock: Clock, find: Callable[..., Found]) -> None:
    clock.seconds[INT8] = 0.5

    found = find()

    assert found.chosen.precision == "int8"
    assert found.chosen.first_layer
    assert found.gain == pytest.approx(0.5)
    assert found.before.accuracy - found.after.accuracy <= 0.02
    assert found.after.agreement > 0.95
    assert found.reason.startswith(f"{found.chosen.name} saves 50% of fp32's processor time")
    assert verdicts(found)["fp32"] == "the standard of the comparison"
    assert verdicts(found)[MIXED] == "saves less than 10%"


def test_of_equally_fast_calibrations_the_one_that_agrees_most_is_chosen(
    clock: Clock, find: Callable[..., Found]
) -> None:
    clock.seconds[INT8] = 0.5

    found = find()

    tried = {row.name: row for row in found.rows if row.name.startswith("int8") and row.agreement is not None}
    assert set(tried) == {"int8", "int8, percentile", "int8, entropy"}
    agreements = [row.agreement for row in tried.values() if row.verdict != "cannot be made" and row.agreement]
    chosen = tried[found.chosen.name]
    assert chosen.verdict == "chosen"
    assert chosen.agreement == max(agreements)


def test_the_faster_of_two_is_chosen(clock: Clock, find: Callable[..., Found]) -> None:
    clock.seconds |= {INT8: 0.5, MIXED: 0.4}

    found = find()

    assert not found.chosen.first_layer
    assert verdicts(found)[INT8] == "is slower than the chosen one"


@pytest.mark.parametrize("seconds", [0.91, 1.5])
def test_without_a_real_gain_fp32_stays(clock: Clock, find: Callable[..., Found], seconds: float) -> None:
    clock.seconds |= {INT8: seconds, MIXED: seconds}

    found = find()

    assert found.chosen.name == "fp32"
    assert (found.gain, found.after) == (0.0, found.before)
    assert found.reason == "nothing that keeps the accuracy saves 10% of fp32's time"
    assert verdicts(found)["fp32"] == "chosen"


def test_a_graph_that_loses_accuracy_is_not_served_however_fast(
    clock: Clock, find: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The int8 graphs are made of images that are all black, so their scales fit nothing."""
    clock.seconds |= {INT8: 0.1, MIXED: 0.2}
    monkeypatch.setattr(quantize, "calibration_images", lambda images: np.zeros_like(images[:32]))

    found = find(max_loss=0.002)

    assert found.chosen.name == "fp32"
    assert "points of accuracy, 0.20 allowed" in verdicts(found)[INT8]
    assert found.reason == (
        f"nothing that keeps the accuracy saves 10% of fp32's time: int8 would save 90%, but {verdicts(found)[INT8]}"
    )


def test_a_graph_that_cannot_be_judged_in_time_is_not_taken_and_that_is_said(
    clock: Clock, find: Callable[..., Found], digits: Dataset
) -> None:
    clock.seconds[INT8] = 0.5  # an image, so that all take half as many seconds as there are
    seconds = 0.4 * len(digits.validation)

    found = find(most_seconds=seconds)

    assert found.chosen.name == "fp32"
    assert verdicts(found)[INT8] == f"not judged: tune.most_seconds is {seconds:g}"
    assert found.reason.endswith(f"int8 would save 50%, but not judged: tune.most_seconds is {seconds:g}")
    assert find(most_seconds=2 * seconds).chosen.precision == "int8"


def test_few_validation_images_take_no_lower_precision_however_fast(
    clock: Clock, find: Callable[..., Found], digits: Dataset
) -> None:
    clock.seconds |= {INT8: 0.1, MIXED: 0.2}
    count = len(digits.validation)

    assert find(min_images=count).chosen.precision == "int8"
    found = find(min_images=count + 1)

    assert found.chosen.name == "fp32"
    assert (
        found.reason == f"{count} validation images are too few to judge a lower precision by, {count + 1} are needed"
    )
    assert verdicts(found)[INT8] == f"needs {count + 1} validation images to be judged, there are {count}"


def test_an_accuracy_that_is_just_at_the_limit_passes(
    clock: Clock, find: Callable[..., Found], digits: Dataset
) -> None:
    clock.seconds[INT8] = 0.5
    first = find(seconds=1e-6)  # the deadline has passed, so one calibration is tried
    lost = first.before.accuracy - first.after.accuracy

    assert len([row for row in first.rows if row.precision == "int8"]) == 2
    assert find(seconds=1e-6, max_loss=max(0.0, lost)).chosen.precision == "int8"


def test_another_layout_is_a_candidate_too(clock: Clock, find: Callable[..., Found]) -> None:
    clock.seconds[PLAIN] = 0.5

    found = find()

    assert found.chosen.precision == "fp32"
    assert found.chosen.session.optimization == "extended"
    assert found.after.agreement == 1.0


def test_what_cannot_be_made_is_a_row_and_no_error(
    clock: Clock, find: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: bytes) -> None:
        raise RuntimeError("no such operator\nand a long trace")

    monkeypatch.setattr(quantize, "prepare", broken)

    found = find()

    assert found.chosen.name == "fp32"
    assert verdicts(found)[INT8] == "cannot be made: no such operator"


def test_a_graph_that_onnxruntime_does_not_take_is_a_row_and_no_error(
    clock: Clock, find: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Candidate(name="fp32, broken", precision="fp32", model=b"no graph")
    monkeypatch.setattr(Maker, "others", lambda _: [broken])

    found = find()

    assert found.chosen.name == "fp32"
    assert "onnxruntime cannot load it" in verdicts(found)["fp32, broken"]


@pytest.mark.parametrize(
    ("threads", "cap"),
    [({1: 1.0, 2: 0.95, 4: 0.92}, 1), ({1: 1.0, 2: 0.5, 4: 0.48}, 2), ({1: 1.0, 2: 0.5, 4: 0.2}, None)],
)
def test_threads_are_capped_at_the_fewest_that_are_about_as_fast(
    clock: Clock,
    find: Callable[..., Found],
    monkeypatch: pytest.MonkeyPatch,
    threads: dict[int, float],
    cap: int | None,
) -> None:
    monkeypatch.setattr(graph, "cores", lambda: 4)
    clock.threads = threads

    assert find().chosen.session.threads == cap


def test_on_a_busy_machine_the_clock_does_not_decide_on_threads(
    clock: Clock, find: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "cores", lambda: 2)
    clock.threads, clock.busy = {1: 0.5, 2: 1.0}, 3.0

    found = find()

    assert found.chosen.session.threads is None
    assert [row.verdict for row in found.rows if row.threads == 2] == [
        "not decided: other programs keep the processors busy"
    ]


def test_fewer_validation_images_than_a_batch_are_enough(
    clock: Clock, find: Callable[..., Found], digits: Dataset
) -> None:
    few: NDArray[np.intp] = np.arange(5)

    assert find(validation=digits.validation.take(few)).images == 5


def test_with_the_real_clock_every_row_has_its_times(
    find: Callable[..., Found], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graph, "cores", lambda: 2)

    found = find(seconds=0.2)

    assert {row.name for row in found.rows} >= {"fp32", PLAIN, INT8, MIXED}
    assert all(row.milliseconds and row.milliseconds_in_batch for row in found.rows)
    assert found.rows[0].name == "fp32"


def test_a_maker_tells_what_it_could_not_make(exported_graphs: dict[int, bytes], digits: Dataset) -> None:
    maker = Maker(b"no graph", image=IMAGE, train=digits.train.images, cuda=False)

    made = list(maker.others())

    assert [type(each) for each in made] == [Candidate, Failed, Failed]


@pytest.mark.gpu
def test_on_a_gpu_half_precision_is_compared_and_buckets_are_measured(
    graphs: dict[str, Any], exported_graphs: dict[int, bytes], digits: Dataset
) -> None:
    found = Search(
        exported_graphs[id(graphs["good"])],
        image=IMAGE,
        train=digits.train,
        validation=digits.validation,
        limits=Tune(),
        cuda=True,
    ).run()

    assert {"fp32", "fp16"} <= {row.name for row in found.rows}
    assert found.chosen.session.buckets[-1] == 64
