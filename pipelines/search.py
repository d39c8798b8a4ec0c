"""The search for the graph to serve: candidates timed beside each other and held to the accuracy of fp32.

On a CPU the processor's time of one thread decides, on CUDA the clock; a single image and a large batch weigh the
same. The candidates that save enough are taken from the fastest on, and the first one that keeps the accuracy on all
validation images is chosen. An int8 graph is as fast however its scales were taken: of those the one is chosen that
agrees most with fp32.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from contracts.bundle import INPUT, OUTPUT
from contracts.errors import ExportError
from contracts.image_spec import ImageSpec
from contracts.recipe import Tune
from pipelines import graph, measure, parity, quantize
from pipelines.candidates import Candidate, Failed, Maker
from pipelines.comparison import Accuracy, Found, Row

if TYPE_CHECKING:
    from services.training.data.dataset import Split

LARGE: Final = 64
"""The batch that is timed beside a single image, and the largest bucket; of large images an eighth."""
_TIMING: Final = 0.4  # of the seconds, for all candidates together; threads and buckets get half as much
_MORE_THREADS: Final = 0.1  # the least share of the time that more threads must save
_BUSY: Final = 1.5  # times the processor's time on the clock of one thread, and the clock says nothing of threads
_SMALLER_BUCKET: Final = 0.05  # likewise
_LAST_BIT: Final = 1e-12  # accuracies are k/n in floating point: a loss of exactly the limit passes


class Search:
    """One search, on this machine."""

    def __init__(
        self, model: bytes, *, image: ImageSpec, train: Split, validation: Split, limits: Tune, cuda: bool
    ) -> None:
        """Keep what is searched through.

        Args:
            model: The fp32 graph, an ONNX file.
            image: Its input.
            train: Where int8 takes its scales from.
            validation: What accuracy is measured on; at least one image.
            limits: Of time, gain and loss.
            cuda: The graph will be served on CUDA.
        """
        self._maker = Maker(model, image=image, train=train.images, cuda=cuda)
        self._validation = validation
        self._limits = limits
        self._cuda = cuda
        self._deadline = time.monotonic() + limits.seconds
        self._end = time.monotonic() + limits.most_seconds
        self._large = LARGE if image.height * image.width <= quantize.SMALL else LARGE // 8
        # Repeated where there are fewer images: the batch must be as large as it is called.
        some = validation.images[: self._large]
        self._images = np.ascontiguousarray(np.resize(some, (self._large, *image.shape)))
        self._times: dict[str, tuple[float, float]] = {}
        self._rows: list[Row] = []

    def run(self) -> Found:
        """Search: `seconds` bound the timing and the ways to take scales, `most_seconds` the graphs that are judged."""
        base = self._maker.base
        made = self._runnable(self._maker.others())
        self._time([base, *made])
        expected = self._answers(base)
        before = self._accuracy(expected, expected)
        found: tuple[Candidate, Accuracy] | None = None
        for candidate in sorted(made, key=self._score):
            if self._gain(candidate) < self._limits.min_gain:
                self._row(candidate, f"saves less than {self._limits.min_gain:.0%}")
            elif found is not None:
                self._row(candidate, "is slower than the chosen one")
            elif self._few and candidate.precision != base.precision:
                wanted = f"{self._limits.min_images} validation images"
                self._row(candidate, f"needs {wanted} to be judged, there are {len(self._validation)}")
            elif not self._in_time(candidate):
                self._row(candidate, f"not judged: tune.most_seconds is {self._limits.most_seconds:g}")
            else:
                found = self._faithful(candidate, expected, before)
        chosen, after = found or (base, before)
        self._row(base, "chosen" if found is None else "the standard of the comparison", before)
        reason = self._reason(chosen, before, after)
        gain = self._gain(chosen)
        chosen = self._with_buckets(chosen) if self._cuda else self._with_threads(chosen)
        rows = tuple(sorted(self._rows, key=lambda row: row.name != base.name))
        images = len(self._validation)
        return Found(chosen=chosen, reason=reason, gain=gain, before=before, after=after, images=images, rows=rows)

    def _in_time(self, candidate: Candidate) -> bool:
        """Whether its answers to all validation images can be expected before the end; on one thread, at the worst."""
        _, in_batch = self._times[candidate.name]
        return time.monotonic() + in_batch * len(self._validation) <= self._end

    @property
    def _few(self) -> bool:
        return len(self._validation) < self._limits.min_images

    def _runnable(self, made: Iterable[Candidate | Failed]) -> list[Candidate]:
        found = []
        for candidate in made:
            if isinstance(candidate, Failed):
                self._fail(candidate)
                continue
            try:
                graph.predict(self._open(candidate), self._images, batch_size=self._large)
            except ExportError as error:
                self._fail(Failed(name=candidate.name, precision=candidate.precision, reason=error.message))
            else:
                found.append(candidate)
        return found

    def _fail(self, failed: Failed) -> None:
        self._rows.append(Row(name=failed.name, precision=failed.precision, threads=1, verdict=failed.reason))

    def _open(self, candidate: Candidate, threads: int = 1) -> Any:
        session = candidate.session.model_copy(update={"threads": threads})
        return graph.open_session(candidate.model, session, cuda=self._cuda)

    def _time(self, candidates: list[Candidate]) -> None:
        calls: dict[str, Callable[[], object]] = {}
        for candidate in candidates:
            session = self._open(candidate)
            calls[f"{candidate.name}:1"] = _call(session, self._images[:1])
            calls[f"{candidate.name}:large"] = _call(session, self._images)
        timings = measure.interleaved(calls, seconds=self._limits.seconds * _TIMING)
        for candidate in candidates:
            single, large = (timings[f"{candidate.name}:{size}"] for size in ("1", "large"))
            pair = (single.wall_s, large.wall_s) if self._cuda else (single.cpu_s, large.cpu_s)
            self._times[candidate.name] = pair[0], pair[1] / self._large

    def _score(self, candidate: Candidate) -> float:
        single, in_batch = self._times[candidate.name]
        return math.sqrt(single * in_batch)

    def _gain(self, candidate: Candidate) -> float:
        return 1 - self._score(candidate) / self._score(self._maker.base)

    def _answers(self, candidate: Candidate) -> NDArray[np.float32]:
        session = self._open(candidate, graph.cores())
        return graph.predict(session, self._validation.images, batch_size=self._large)

    def _accuracy(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> Accuracy:
        labels = self._validation.labels
        return Accuracy(
            accuracy=parity.accuracy(found, labels),
            loss=parity.loss(found, labels),
            agreement=float((found.argmax(axis=1) == expected.argmax(axis=1)).mean()),
            difference=float(np.abs(found - expected).max(axis=1).mean()),
        )

    def _faithful(
        self, candidate: Candidate, expected: NDArray[np.float32], before: Accuracy
    ) -> tuple[Candidate, Accuracy] | None:
        """The candidate, or its like with other scales, that keeps the accuracy and agrees most with fp32."""
        passed: list[tuple[Candidate, Accuracy]] = []
        measured: list[tuple[Candidate, Accuracy]] = []
        for each in self._recalibrated(candidate):
            after = self._accuracy(self._answers(each), expected)
            measured.append((each, after))
            if before.accuracy - after.accuracy <= self._limits.max_loss + _LAST_BIT:
                passed.append((each, after))
        best = max(passed, key=lambda pair: (pair[1].agreement, -pair[1].difference), default=None)
        for each, after in measured:
            if best is not None and each is best[0]:
                verdict = "chosen"
            elif any(each is other for other, _ in passed):
                verdict = "agrees less with fp32 than the chosen one"
            else:
                lost = 100 * (before.accuracy - after.accuracy)
                verdict = f"loses {lost:.2f} points of accuracy, {100 * self._limits.max_loss:.2f} allowed"
            self._row(each, verdict, after)
        return best

    def _recalibrated(self, candidate: Candidate) -> Iterable[Candidate]:
        yield candidate
        for calibration in quantize.CALIBRATIONS:
            over = time.monotonic() > self._deadline or not self._in_time(candidate)
            if candidate.calibration in (None, calibration) or over:
                continue
            made = self._maker.int8(calibration, first_layer=candidate.first_layer)
            if isinstance(made, Failed):
                self._fail(made)
                continue
            self._times[made.name] = self._times[candidate.name]
            yield made

    def _with_threads(self, chosen: Candidate) -> Candidate:
        """Cap the threads at the fewest that are about as fast as more of them: the rest serves others."""
        counts = _thread_counts(graph.cores())
        if len(counts) == 1:
            return chosen
        sessions = {count: self._open(chosen, count) for count in counts}
        calls = {f"{count}:{size}": _call(session, images) for count, session in sessions.items()
                 for size, images in (("1", self._images[:1]), ("large", self._images))}  # fmt: skip
        timings = measure.interleaved(calls, seconds=self._limits.seconds * _TIMING / 2)
        pairs = {n: (timings[f"{n}:1"].wall_s, timings[f"{n}:large"].wall_s / self._large) for n in counts}
        scores = {count: math.sqrt(single * in_batch) for count, (single, in_batch) in pairs.items()}
        fewest = next(n for n in counts if scores[n] <= min(scores.values()) / (1 - _MORE_THREADS))
        alone = timings["1:large"]
        busy = alone.wall_s > _BUSY * alone.cpu_s
        fewest = counts[-1] if busy else fewest
        for count in counts:
            gain = 1 - scores[count] / scores[counts[0]]
            verdict = "chosen by the clock" if count == fewest else "compared by the clock"
            verdict = "not decided: other programs keep the processors busy" if busy else verdict
            self._row(chosen, verdict, threads=count, times=pairs[count], gain=gain)
        cap = None if fewest == counts[-1] else fewest
        return replace(chosen, session=chosen.session.model_copy(update={"threads": cap}))

    def _with_buckets(self, chosen: Candidate) -> Candidate:
        """Keep the batch sizes that are faster than filling up to the next larger one."""
        sizes = [2**power for power in range(self._large.bit_length())]
        session = self._open(chosen)
        calls = {str(size): _call(session, self._images[:size]) for size in reversed(sizes)}
        timings = measure.interleaved(calls, seconds=self._limits.seconds * _TIMING / 2)
        kept = sizes[-1:]
        for size in reversed(sizes[:-1]):
            if timings[str(size)].wall_s <= timings[str(kept[0])].wall_s * (1 - _SMALLER_BUCKET):
                kept.insert(0, size)
        return replace(chosen, session=chosen.session.model_copy(update={"buckets": tuple(kept)}))

    def _reason(self, chosen: Candidate, before: Accuracy, after: Accuracy) -> str:
        if chosen is self._maker.base and self._few:
            images = f"{len(self._validation)} validation images"
            return f"{images} are too few to judge a lower precision by, {self._limits.min_images} are needed"
        if chosen is self._maker.base:
            return self._nothing()
        time_of = "time" if self._cuda else "processor time"
        return (
            f"{chosen.name} saves {self._gain(chosen):.0%} of fp32's {time_of}, at a validation accuracy of "
            f"{after.accuracy:.4f} (fp32 {before.accuracy:.4f}) with the same class for {after.agreement:.2%}"
        )

    def _nothing(self) -> str:
        """Why no graph took the place of fp32: the verdict on the one that would have saved most."""
        sentence = f"nothing that keeps the accuracy saves {self._limits.min_gain:.0%} of fp32's time"
        rows = [row for row in self._rows if row.gain is not None and row.gain >= self._limits.min_gain]
        if not rows:
            return sentence
        best = max(rows, key=lambda row: row.gain or 0.0)
        return f"{sentence}: {best.name} would save {best.gain:.0%}, but {best.verdict}"

    def _row(
        self,
        candidate: Candidate,
        verdict: str,
        seen: Accuracy | None = None,
        *,
        threads: int = 1,
        times: tuple[float, float] | None = None,
        gain: float | None = None,
    ) -> None:
        single, in_batch = times or self._times[candidate.name]
        self._rows.append(
            Row(
                name=candidate.name,
                precision=candidate.precision,
                threads=threads,
                milliseconds=1000 * single,
                milliseconds_in_batch=1000 * in_batch,
                gain=self._gain(candidate) if gain is None else gain,
                bytes=len(candidate.model),
                **({} if seen is None else asdict(seen)),
                verdict=verdict,
            )
        )


def _call(session: Any, images: NDArray[np.uint8]) -> Callable[[], object]:
    return lambda: session.run([OUTPUT], {INPUT: images})


def _thread_counts(cores: int) -> list[int]:
    """1, 2, 4 … and all of them."""
    return sorted({*(2**power for power in range(cores.bit_length())), cores})
