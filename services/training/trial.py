"""Trial steps for measuring: a recipe's own network, batch size, augmentation and optimizer, on throw-away copies."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from contracts.recipe import Recipe
from services.training.augment import augment, mix
from services.training.averaging import Average
from services.training.data.dataset import Split
from services.training.device import Plan
from services.training.evaluate import to_device
from services.training.measurement import Trial
from services.training.networks import ServedGraph
from services.training.optimizers import make_optimizer
from services.training.schedules import LearningRate
from services.training.step import make_step, set_rate


def make_trial(graph: ServedGraph, train: Split, recipe: Recipe, *, steps: int, workers: int = 1) -> Trial:
    """What measures a recipe's steps: from the graph's weights, on the first batch of a split, at the rates at which
    the fit begins. The graph and the split are left as they are.

    Args:
        steps: Of the whole fit; the learning rate is drawn over them.
        workers: How many share a batch; one's part of it is measured.
    """
    size = -(-recipe.fit.batch_size // workers)
    batch, truth = train.images[:size], train.labels[:size]

    def prepare(plan: Plan) -> Callable[[], Tensor]:
        copied = copy.deepcopy(graph).to(plan.device).to(memory_format=plan.memory_format).train()
        optimizer = make_optimizer(recipe.optimizer, copied.network)
        scaler = torch.amp.GradScaler(plan.device, enabled=plan.precision == "fp16")
        average = Average(copied, recipe.fit.ema) if recipe.fit.ema is not None else None
        take = make_step(copied, recipe, plan, optimizer, scaler)
        images, labels = to_device(batch, plan.device), to_device(truth, plan.device)
        randomness = torch.Generator(device=plan.device).manual_seed(0)
        rate = LearningRate(recipe.schedule, recipe.optimizer.lr, steps)
        taken = 0

        def step() -> Tensor:
            nonlocal taken
            set_rate(optimizer, rate.at(taken))
            taken += 1
            config = recipe.augmentation
            pixels = augment(images, config, randomness) if config.any else images
            changed = mix(pixels, labels, config, randomness) if config.mixes else (pixels, labels)
            loss, _ = take(*changed)
            if average is not None:
                average.update()
            return loss

        return step

    return prepare
