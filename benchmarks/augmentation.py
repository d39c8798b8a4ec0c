"""What augmentation costs beside an epoch of the deer-horse net, in one run.

    python -m benchmarks.augmentation [--recipe deer-horse-augmented] [--images 3200] [--repeats 9] [--precision bf16]

Fits one epoch with the recipe's augmentation and one without, in turn, and prints what the fastest of the first costs
more than the fastest of the second, as a share of it; exits 1 above 0.15. About 60 s on two cores. On the CPU one
thread computes and its CPU seconds are counted, since wall time on a shared machine varies by more than the bar.
Without --precision both fp32 and bf16 are measured: the faster the net, the larger the share.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from benchmarks.loop import clock, loop, one_epoch, planned, synthetic
from contracts.recipe import Augmentation, Recipe
from pipelines import recipe_files
from services.training.augment import augment
from services.training.device import Precision

CEILING = 0.15

ALONE: tuple[dict[str, object], ...] = (
    {"flip_horizontal": True},
    {"crop_padding": 4, "fill": "zeros"},
    {"crop_padding": 4, "fill": "reflect"},
    {"rotation": 40, "shift": 0.2, "shear": 0.2, "zoom": 0.2},
    {"cutout": 8},
    {"brightness": 0.2},
    {"contrast": 0.2},
    {"saturation": 0.2},
    {"hue": 0.1},
)


def share(recipe: Recipe, *, precision: Precision, images: int, repeats: int) -> float:
    """(augmented - plain) / plain, of the time of an epoch; printed with the spread over the pairs."""
    plan = planned(precision)
    split = synthetic(recipe, images, classes=2)
    full = one_epoch(recipe)
    variants = (full, full.model_copy(update={"augmentation": Augmentation()}))

    def times() -> tuple[float, float]:
        augmented, plain = (images / loop(variant, split, plan, 2) for variant in variants)
        return augmented, plain

    times()
    pairs = [times() for _ in range(repeats)]
    # The best of each: what else runs on the machine only ever slows one of them down.
    augmented, plain = (min(pair[side] for pair in pairs) / images * 1e6 for side in (0, 1))
    shares = [augmented / plain - 1 for augmented, plain in pairs]
    cost = augmented / plain - 1
    print(
        f"{recipe.name} {precision} on {plan.device}: {augmented:.0f} us an image augmented, {plain:.0f} plain,"
        f" cost {cost:.3f} of an epoch (pairs: median {statistics.median(shares):.3f}, {min(shares):.3f} to"
        f" {max(shares):.3f}, n={repeats})"
    )
    return cost


def alone(recipe: Recipe, repeats: int) -> None:
    """What each way of augmenting costs by itself, over 256 images; for reading, nothing is asserted."""
    plan = planned("fp32")
    images = torch.from_numpy(synthetic(recipe, 256, classes=2).images).to(plan.device)
    generator = torch.Generator(device=plan.device).manual_seed(0)
    for changes in ALONE:
        config = Augmentation.model_validate(changes)

        def run(config: Augmentation = config) -> float:
            started = clock(plan)
            for _ in range(5):
                augment(images, config, generator)
            return (clock(plan) - started) / (5 * len(images)) * 1e6

        run()
        print(f"  {changes}: {statistics.median(run() for _ in range(repeats)):.1f} us an image")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="deer-horse-augmented")
    parser.add_argument("--images", type=int, default=3200)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--precision", choices=["fp32", "bf16"], action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    recipe = recipe_files.load(options.recipe)
    shares = [
        share(recipe, precision=precision, images=options.images, repeats=options.repeats)
        for precision in options.precision or ["fp32", "bf16"]
    ]
    alone(recipe, options.repeats)
    return 0 if max(shares) <= CEILING else 1


if __name__ == "__main__":
    raise SystemExit(main())
