"""The limit: forward, backward and step on one batch that is ready, over and over, as Stride's plan computes it.

    python -m benchmarks.training.peers.bare_step JOB.json

Nothing is gathered, scaled, counted, checked, logged or evaluated. A turn takes five seconds, or one epoch's steps, and
there are twelve at most.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.training.turns import Turns
from contracts.recipe import parse
from services.training.data import load
from services.training.initial_graph import make_graph
from services.training.networks import count_parameters
from services.training.optimizers import make_optimizer
from services.training.planning import plan_of

TURN_S = 5.0
TURNS = 12
"""However many epochs the others have: its figure is known by then, and a fit's later epochs are no other ones."""


def main() -> None:
    turns = Turns()
    job = json.loads(Path(sys.argv[1]).read_text())
    recipe = parse(job["recipe"], name=job["recipe"]["name"])
    torch.set_num_threads(job["threads"])
    torch.manual_seed(recipe.fit.seed)
    dataset = load(recipe.data)
    graph = make_graph(recipe, dataset)
    # Stride's fit of the same recipe has begun, so this is what it measured and keeps in STRIDE_HOME.
    plan = plan_of(graph, dataset, recipe)
    size = recipe.fit.batch_size
    with plan.computing():
        graph.to(plan.device).to(memory_format=plan.memory_format).train()
        optimizer = make_optimizer(recipe.optimizer, graph.network)
        network = torch.compile(graph.network, dynamic=False) if plan.compiled else graph.network
        pixels = graph.normalize(torch.tensor(dataset.train.images[:size]).to(plan.device))
        pixels = pixels.contiguous(memory_format=plan.memory_format)
        labels = torch.tensor(dataset.train.labels[:size]).to(plan.device)

        def step() -> None:
            with plan.autocast():
                logits = network(pixels)
            loss = F.cross_entropy(logits.float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        for _ in range(3):
            step()
        turns.ready(
            parameters=count_parameters(graph.network).total,
            images=len(dataset.train),
            versions={"torch": version("torch")},
            how=f"{plan.precision}, {'channels-last' if plan.channels_last else 'contiguous'}, {plan.threads} threads",
        )
        for _ in range(min(recipe.fit.epochs, TURNS)):
            steps, started = 0, time.perf_counter()
            while steps < len(dataset.train) // size and time.perf_counter() - started < TURN_S:
                step()
                steps += 1
            seconds = time.perf_counter() - started
            turns.epoch({"images": steps * size, "steps_seconds": seconds}, judge=lambda: 0.0)
        turns.done()


if __name__ == "__main__":
    main()
