"""What the entries of a contest come to: a row a contender, the bars, and where Stride loses. Pure functions."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

STRIDE, BARE, KERAS, LIGHTNING = "stride", "bare", "keras", "lightning"

SPEED_UP: Final = 2.0
LOOP: Final = 0.97
OVERHEAD: Final = 0.02
MEMORY: Final = 1_000_000_000
"""Bytes beside the images."""
ONE_SEED: Final = 0.005
"""How far apart two accuracies on 10,000 images may be by chance where there is one seed each (1.5 deviations)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One contender over all its seeds. What was not measured is None."""

    name: str
    how: str
    seeds: int
    epochs: int
    """That were timed; the first one of each fit is warm-up where there are more."""
    rate: float
    """Training images a second of whole epochs, validation, logging and checkpoints included; the median."""
    slowest: float
    fastest: float
    cpu_ms: float
    """CPU milliseconds for each training image, of all threads; the median."""
    start: float
    """Seconds from the start of the process until the fit could begin."""
    fit: float | None
    """Seconds of all turns of a fit, from its first epoch to its report; the median over the seeds."""
    reached: tuple[float | None, ...]
    """Seconds of fitting until the published accuracy was reached on the test images, for each seed."""
    accuracy: float | None
    deviation: float | None
    """Between the seeds."""
    peak_bytes: int | None
    """The most resident memory, mapped files included."""
    anonymous_bytes: int | None = None
    """The most of it that was seen of what is no file's."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One promise, and whether it held."""

    recipe: str
    what: str
    found: str
    held: bool | None
    """None where it was not judged; `found` says why."""

    def line(self) -> str:
        verdict = {True: "held", False: "MISSED", None: "not judged"}[self.held]
        return f"{self.recipe}: {self.what}: {verdict}, {self.found}"


def summarise(entries: Sequence[dict[str, Any]], name: str, *, published: float | None) -> Row | None:
    """The row of a contender; None where no seed of it came to its end."""
    mine = [entry for entry in entries if entry["name"] == name and entry["done"]]
    timed = [(entry, epoch) for entry in mine for epoch in entry["epochs"][1:] or entry["epochs"]]
    if not timed:
        return None
    counts = [epoch.get("images", entry["ready"]["images"]) for entry, epoch in timed]
    rates = [images / epoch["seconds"] for images, (_, epoch) in zip(counts, timed, strict=True)]
    cpu = [epoch["cpu_seconds"] / images * 1e3 for images, (_, epoch) in zip(counts, timed, strict=True)]
    accuracies = [entry["done"]["test_accuracy"] for entry in mine if "test_accuracy" in entry["done"]]
    whole = [sum(epoch["seconds"] for epoch in entry["epochs"]) + entry["done"]["seconds"] for entry in mine]
    return Row(
        name=name,
        how=mine[0]["ready"].get("how", ""),
        seeds=len(mine),
        epochs=len(timed),
        rate=statistics.median(rates),
        slowest=min(rates),
        fastest=max(rates),
        cpu_ms=statistics.median(cpu),
        start=statistics.median(entry["ready"]["seconds"] for entry in mine),
        fit=statistics.median(whole) if accuracies else None,
        reached=tuple(_reached(entry, published) for entry in mine) if accuracies else (),
        accuracy=statistics.mean(accuracies) if accuracies else None,
        deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        peak_bytes=max(entry["done"]["peak_bytes"] for entry in mine) if accuracies else None,
        anonymous_bytes=(max(entry.get("anonymous_bytes", 0) for entry in mine) or None) if accuracies else None,
    )


def judge(
    recipe: str, entries: Sequence[dict[str, Any]], *, data_bytes: int, real: bool, whole: bool, published: float | None
) -> list[Bar]:
    """The bars of one recipe.

    Args:
        recipe: Its name.
        entries: Of all contenders and seeds, as `Entry.to_json` gives them.
        data_bytes: Of the images, as uint8.
        real: Whether the images are the real ones: accuracy means nothing on others.
        whole: Whether the fits went to the recipe's end: before it, accuracy and costs per epoch say little.
        published: The test accuracy to reach.
    """
    ours = summarise(entries, STRIDE, published=published)
    if ours is None:
        problems = {entry["problem"] for entry in entries if entry["name"] == STRIDE and entry["problem"]}
        found = "; ".join(sorted(problems)) or "it did not run"
        return [Bar(recipe=recipe, what="Stride's fit comes to its end", found=found, held=False)]
    bars = [_speed(recipe, ours, entries, peer) for peer in (KERAS, LIGHTNING)]
    theirs = summarise(entries, KERAS, published=published)
    bars.append(_accuracy(recipe, ours, theirs, real=real, whole=whole))
    bars += [_loop(recipe, entries), _overhead(recipe, entries)]
    what = "peak resident memory <= images + 1 GB"
    assert ours.peak_bytes is not None
    over = (ours.peak_bytes - data_bytes) / 1e9
    anonymous = "" if ours.anonymous_bytes is None else f" and {ours.anonymous_bytes / 1e9:.2f} GB no file's pages"
    found = f"{ours.peak_bytes / 1e9:.2f} GB, of which {data_bytes / 1e9:.2f} GB are images{anonymous}"
    return [*bars, Bar(recipe=recipe, what=what, found=found, held=over * 1e9 <= MEMORY)]


def losses(rows: Sequence[Row]) -> list[str]:
    """One sentence for each figure in which another contender is better than Stride; the bare step fits nothing."""
    ours = next((row for row in rows if row.name == STRIDE), None)
    if ours is None:
        return ["Stride did not come to its end."]
    figures: tuple[tuple[str, Callable[[Row], float | None], int, str], ...] = (
        ("images a second", lambda row: row.rate, 1, ",.0f"),
        ("CPU milliseconds an image", lambda row: row.cpu_ms, -1, ".3f"),
        ("seconds from start to the first epoch", lambda row: row.start, -1, ".1f"),
        ("seconds of the fit, with what follows its last epoch", lambda row: row.fit, -1, ".1f"),
        ("peak memory in GB", lambda row: None if row.peak_bytes is None else row.peak_bytes / 1e9, -1, ".2f"),
        ("test accuracy", lambda row: row.accuracy, 1, ".4f"),
    )
    found = []
    for what, value, sign, form in figures:
        mine = value(ours)
        for row in rows:
            theirs = value(row)
            if row.name in (STRIDE, BARE) or mine is None or theirs is None or (theirs - mine) * sign <= 0:
                continue
            found.append(f"{what}: {row.name} {theirs:{form}}, Stride {mine:{form}}.")
    return found


def _reached(entry: dict[str, Any], published: float | None) -> float | None:
    spent = 0.0
    for epoch in entry["epochs"]:
        spent += float(epoch["seconds"])
        if published is not None and epoch["test_accuracy"] >= published:
            return spent
    return None


def _speed(recipe: str, ours: Row, entries: Sequence[dict[str, Any]], peer: str) -> Bar:
    what = f"images/s >= {SPEED_UP} x {peer}"
    theirs = summarise(entries, peer, published=None)
    if theirs is None:
        problems = [entry["problem"] for entry in entries if entry["name"] == peer and entry["problem"]]
        return Bar(recipe=recipe, what=what, found=problems[0] if problems else f"{peer} did not take part", held=None)
    ratio = ours.rate / theirs.rate
    found = f"{ratio:.2f} x ({ours.rate:,.0f} to {theirs.rate:,.0f})"
    return Bar(recipe=recipe, what=what, found=found, held=ratio >= SPEED_UP)


def _accuracy(recipe: str, ours: Row, theirs: Row | None, *, real: bool, whole: bool) -> Bar:
    what = "test accuracy not below keras'"
    if theirs is None or theirs.accuracy is None or ours.accuracy is None:
        return Bar(recipe=recipe, what=what, found="keras has none", held=None)
    found = f"{ours.accuracy:.4f} to {theirs.accuracy:.4f}"
    if not real:
        return Bar(recipe=recipe, what=what, found=f"{found}, on images that were made up", held=None)
    if not whole:
        return Bar(recipe=recipe, what=what, found=f"{found} after a part of the recipe", held=None)
    spread = max((row.deviation for row in (ours, theirs) if row.deviation is not None), default=ONE_SEED)
    held = ours.accuracy >= theirs.accuracy - spread
    return Bar(recipe=recipe, what=what, found=f"{found}, {spread:.4f} is within the spread", held=held)


def _loop(recipe: str, entries: Sequence[dict[str, Any]]) -> Bar:
    """Each epoch of the loop against the bare step's turn next to it; both timed without validation and logging."""
    what = f"the loop's steps >= {LOOP} of the bare step's images/s"
    loops, limits = (_first(entries, name) for name in (STRIDE, BARE))
    if loops is None or limits is None:
        return Bar(recipe=recipe, what=what, found="the bare step did not take part", held=None)
    images = loops["ready"]["images"]
    pairs = list(zip(loops["epochs"], limits["epochs"], strict=False))
    pairs = pairs[1:] or pairs
    ratios = [(images / loop["steps_seconds"]) / (limit["images"] / limit["steps_seconds"]) for loop, limit in pairs]
    ratio = statistics.median(ratios)
    found = f"{ratio:.3f} ({min(ratios):.3f} to {max(ratios):.3f}, n={len(ratios)})"
    return Bar(recipe=recipe, what=what, found=found, held=ratio >= LOOP)


def _overhead(recipe: str, entries: Sequence[dict[str, Any]]) -> Bar:
    """What of an epoch is neither steps nor validation: logging, pictures, checkpoints and the copy of the best."""
    what = f"logging and checkpoints <= {OVERHEAD:.0%} of an epoch"
    shares = [
        1 - (epoch["steps_seconds"] + epoch["validation_seconds"]) / epoch["seconds"]
        for entry in entries
        if entry["name"] == STRIDE
        for epoch in entry["epochs"][1:] or entry["epochs"]
    ]
    share = statistics.median(shares)
    found = f"{share:.2%} ({min(shares):.2%} to {max(shares):.2%}, n={len(shares)})"
    return Bar(recipe=recipe, what=what, found=found, held=share <= OVERHEAD)


def _first(entries: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    """The first seed of a contender that came to its end."""
    return next((entry for entry in entries if entry["name"] == name and entry["done"]), None)
