"""RESULTS.md from results.json: a section a recipe, each with the machine and the command that it is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.training.bars import Bar, Row

TITLES: Final = {
    "stride": "Stride",
    "keras": "Keras 3 on TensorFlow",
    "lightning": "Lightning's Trainer at its defaults",
    "lightning-bf16": "Lightning's Trainer, bf16-mixed",
    "bare": "the bare torch step, the limit",
}

_HEAD: Final = """# The fit against what a user would pick instead

Written by `stride bench train`; not edited by hand. All contenders fit the same network (equal to the parameter) to
the same images with the same batches and epochs, on two threads at most, each as a process of its own, in turns: one
epoch of one, then one of the next, while the others are stopped. Images/s are those of whole epochs: training steps,
validation, logging and checkpoints; the first epoch of a fit is warm-up. Medians, with the slowest and the fastest
epoch. "The fit" is the sum of a contender's turns, with what follows the last epoch; Stride also writes its report
and its figures then. Accuracy is on the test images, which are judged after each epoch while no clock runs. Peak
memory is the kernel's figure, which counts the resident pages of shared libraries; in brackets is the most that was
seen of it without mapped files, in ten looks a second.
"""

_GPU: Final = """## On a GPU

| what | bar | measured |
|---|---|---|
| CIFAR-10 to 94%, seconds of training, MLflow logging included (one H200) | <= 2.6 s | not yet measured |
| the loop against the bare step | >= 0.95 | not yet measured |
| ResNet-18 at 224 in bf16, images/s against the card's measured ceiling | - | not yet measured |
| ResNet-50 at 224 in bf16, images/s against the card's measured ceiling | - | not yet measured |
"""


def markdown(sections: Mapping[str, Mapping[str, Any]]) -> str:
    """The report of all recipes that results.json holds."""
    return "\n".join([_HEAD, *(_section(name, content) for name, content in sections.items()), _GPU])


def _section(name: str, content: Mapping[str, Any]) -> str:
    rows = [Row(**row) for row in content["rows"]]
    machine, setting = content["machine"], content["setting"]
    published = setting["published"]
    aim = "no published accuracy" if published is None else f"the published accuracy is {published}"
    images = "the real images" if setting["real"] else "**images that were made up: accuracies mean nothing**"
    lines = [
        f"## `{name}`\n",
        f"`{content['command']}`, {content['when']}. {setting['train']:,} training images, batches of "
        f"{setting['batch_size']}, {setting['epochs']} of the recipe's {setting['recipe_epochs']} epochs; "
        f"{images}; {aim}.\n",
        f"{machine['cpu']}, {machine['cpus']} of its CPUs and {setting['threads']} threads a contender, "
        f"{machine['memory_gb']:.0f} GB, {machine['system']}; load before the run {machine['load']:.2f}. "
        f"{_versions(content['versions'])}\n",
        "| contender | images/s | slowest to fastest, epochs | CPU ms an image | start, s | fit, s | "
        "published accuracy after, s | test accuracy, seeds | peak memory, GB (without mapped files) |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(row) for row in rows),
        *(
            f"| {TITLES[entry['name']]}, seed {entry['seed']} | failed: {entry['problem']} | | | | | | | |"
            for entry in content["entries"]
            if entry["problem"]
        ),
        "",
        *(f"- {TITLES[row.name]}: {row.how}." for row in rows),
        "\n| bar | verdict | found |",
        "|---|---|---|",
        *(_verdict(Bar(**bar)) for bar in content["bars"]),
        "\nWhere Stride loses:" + ("" if content["losses"] else " in none of the figures above.") + "\n",
        *(f"- {loss}" for loss in content["losses"]),
        "",
    ]
    return "\n".join(lines)


def _row(row: Row) -> str:
    cells = [
        TITLES[row.name],
        f"{row.rate:,.0f}",
        f"{row.slowest:,.0f} to {row.fastest:,.0f}, {row.epochs}",
        f"{row.cpu_ms:.3f}",
        f"{row.start:.1f}",
        "–" if row.fit is None else f"{row.fit:.1f}",
        ", ".join("not reached" if seconds is None else f"{seconds:.1f}" for seconds in row.reached) or "–",
        _accuracy(row),
        _memory(row),
    ]
    return f"| {' | '.join(cells)} |"


def _memory(row: Row) -> str:
    if row.peak_bytes is None:
        return "–"
    anonymous = "" if row.anonymous_bytes is None else f" ({row.anonymous_bytes / 1e9:.2f})"
    return f"{row.peak_bytes / 1e9:.2f}{anonymous}"


def _accuracy(row: Row) -> str:
    if row.accuracy is None:
        return "–"
    spread = "" if row.deviation is None else f" ± {row.deviation:.4f}"
    return f"{row.accuracy:.4f}{spread}, {row.seeds}"


def _verdict(bar: Bar) -> str:
    return f"| {bar.what} | {({True: 'held', False: '**missed**', None: 'not judged'})[bar.held]} | {bar.found} |"


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items()) + "."


def failed(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line for each contender that did not come to its end."""
    return [f"{entry['name']}, seed {entry['seed']}: {entry['problem']}" for entry in entries if entry["problem"]]
