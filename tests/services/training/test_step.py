from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from contracts.images import ImageSpec
from contracts.recipe import Block, Convnet, Data, Head, Recipe
from services.training.averaging import Average
from services.training.batches import Batches
from services.training.data.dataset import Split
from services.training.device import Plan, Precision
from services.training.loader import open_source
from services.training.networks import ServedGraph, build
from services.training.optimizers import make_optimizer
from services.training.step import make_step, set_rate, training_step
from tests.services.training.plans import cpu_plan

SPEC = ImageSpec(height=8, width=8, channels=1)
CPU = cpu_plan()
CUDA = replace(CPU, device="cuda")
OPTIMIZERS: list[dict[str, Any]] = [
    {"name": "adam"},
    {"name": "adamw", "weight_decay": 0.01},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "rmsprop"},
    {"name": "rmsprop", "epsilon_inside_sqrt": True},
    {"name": "rmsprop", "epsilon_inside_sqrt": True, "momentum": 0.5},
]


def recipe(**parts: Any) -> Recipe:
    block = Block(filters=4, padding="same", norm="batch")
    return Recipe.model_validate(
        {
            "name": "tiny",
            "model_name": "tiny",
            "data": Data(dataset="digits", image=SPEC),
            "model": Convnet(blocks=(block,), head=Head(units=(8,))),
            "fit": {"batch_size": 16, "clip_norm": 1.0},
            **parts,
        }
    )


def split(n: int = 40) -> Split:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    return Split(images=images, labels=random.integers(0, 3, n))


def graph_of(config: Recipe, plan: Plan) -> ServedGraph:
    torch.manual_seed(0)
    network = build(config.model, image=SPEC, classes=3)
    graph = ServedGraph(network, output=config.output, mean=(0.0,), std=(1.0,))
    return graph.to(plan.device).to(memory_format=plan.memory_format).train()


def weights_after(config: Recipe, plan: Plan, epochs: int = 3) -> tuple[list[torch.Tensor], list[float]]:
    """The weights and the losses of a few epochs, the last batch of each of which is short."""
    graph = graph_of(config, plan)
    optimizer = make_optimizer(config.optimizer, graph.network)
    step = make_step(graph, config, plan, optimizer, torch.amp.GradScaler(plan.device, enabled=False))
    batches = Batches(open_source(split(), plan.device), batch_size=16, augmentation=config.augmentation, seed=0)
    losses = []
    for epoch in range(1, epochs + 1):
        for number, (batch, truth) in enumerate(batches.epoch(epoch)):
            set_rate(optimizer, 1e-3 * (1 + number))
            losses.append(step(batch, truth)[0])
    return [p.detach().cpu() for p in graph.parameters()], [float(loss) for loss in losses]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_made_once_is_the_step_by_itself(precision: Precision) -> None:
    plan = replace(CPU, precision=precision)
    config = recipe(
        model=Convnet(blocks=(Block(filters=16, norm="batch"), Block(filters=8, pool="none")), head=Head(units=(8,)))
    )
    first, second = graph_of(config, plan), graph_of(config, plan)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    optimizers = [make_optimizer(config.optimizer, graph.network) for graph in (first, second)]
    images, labels = torch.from_numpy(split().images[:16]), torch.from_numpy(split().labels[:16])
    step = make_step(first, config, plan, optimizers[0], scaler)
    for _ in range(3):
        answer = step(images, labels)
        wanted = training_step(second, images, labels, config, plan, optimizers[1], scaler)
        assert [float(value) for value in answer] == [float(value) for value in wanted]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_rate_goes_to_every_group_by_its_share_as_a_number_or_a_tensor() -> None:
    layers = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups: list[dict[str, Any]] = [{"params": layers[:1], "lr_scale": 0.1}, {"params": layers[1:]}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    optimizer.param_groups[1]["lr"] = held = torch.tensor(1.0)
    set_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    assert optimizer.param_groups[1]["lr"] is held
    assert float(held) == 0.5


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rmsprop_takes_its_rate_as_a_tensor_too(momentum: float) -> None:
    config = recipe(optimizer={"name": "rmsprop", "epsilon_inside_sqrt": True, "momentum": momentum}).optimizer
    ours, wanted = (torch.nn.Parameter(torch.tensor([1.0, -2.0])) for _ in range(2))
    optimizers = [make_optimizer(config, [parameter]) for parameter in (ours, wanted)]
    optimizers[0].param_groups[0]["lr"] = torch.tensor(0.01)
    for optimizer, parameter in zip(optimizers, (ours, wanted), strict=True):
        for _ in range(3):
            set_rate(optimizer, 0.01)
            parameter.grad = torch.tensor([0.3, -0.7])
            optimizer.step()
    torch.testing.assert_close(ours, wanted)


def test_only_a_whole_batch_is_captured_though_a_short_one_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's side is left out: what would be captured is computed at once, and replayed as nothing."""
    seen: list[tuple[int, bool]] = []
    capturing: list[bool] = []

    class Graph:
        def replay(self) -> None: ...

    @contextmanager
    def capture(_: Graph, **__: Any) -> Iterator[None]:
        capturing.append(True)
        yield
        capturing.clear()

    class Stream:
        def wait_stream(self, _: Any) -> None: ...

    for name, fake in (("CUDAGraph", Graph), ("graph", capture), ("Stream", Stream), ("current_stream", Stream)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    config = recipe()
    graph = graph_of(config, CPU)
    graph.network.register_forward_pre_hook(lambda _, inputs: seen.append((len(inputs[0]), bool(capturing))))
    optimizer = make_optimizer(config.optimizer, graph.network)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    step = make_step(graph, config, replace(CPU, cuda_graph=True), optimizer, scaler)
    images, labels = torch.from_numpy(split().images), torch.from_numpy(split().labels)
    for size in (16, 16, 16, 8, 8, 16, 16):  # as a fit that goes on near the end of an epoch
        step(images[:size], labels[:size])
    assert seen == [(16, False)] * 3 + [(8, False)] * 2 + [(16, True)]  # and once more by replay


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("augmentation", [{}, {"mixup": 0.2, "flip_horizontal": True}])
def test_a_cuda_graph_ends_where_single_launches_end(optimizer: dict[str, Any], augmentation: dict[str, Any]) -> None:
    config = recipe(optimizer=optimizer, augmentation=augmentation)
    weights, losses = weights_after(config, CUDA)
    captured, captured_losses = weights_after(config, replace(CUDA, cuda_graph=True))
    assert captured_losses == pytest.approx(losses, rel=1e-3)
    for found, wanted in zip(captured, weights, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_no_step_waits_for_the_device(cuda_graph: bool) -> None:
    config = recipe(augmentation={"rotation": 10, "cutmix": 1.0, "crop_padding": 1}, fit={"batch_size": 16, "ema": 0.9})
    plan = replace(CUDA, precision="bf16", cuda_graph=cuda_graph)
    graph = graph_of(config, plan)
    optimizer = make_optimizer(config.optimizer, graph.network)
    average = Average(graph, 0.9)
    step = make_step(graph, config, plan, optimizer, torch.amp.GradScaler("cuda", enabled=False))
    totals = torch.zeros(2, device="cuda")
    batches = Batches(open_source(split(160), "cuda"), batch_size=16, augmentation=config.augmentation, seed=0)
    for batch, truth in batches.epoch(1):  # state is made, a graph is captured
        step(batch, truth)
    coming = batches.epoch(2)
    first = next(coming)  # the order goes to the device once an epoch
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch, truth in [first, *coming]:
            set_rate(optimizer, 1e-3)
            loss, right = step(batch, truth)
            average.update()
            totals += torch.stack((loss * len(batch), right))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(totals).all()


@pytest.mark.gpu
def test_a_step_is_captured_while_other_threads_pin_and_copy_memory() -> None:
    """As the threads of a streamed data set do: theirs is not the capture's business."""
    ended, problems = threading.Event(), list[Exception]()

    def work() -> None:
        kept, size = list[torch.Tensor](), 0
        try:
            while not ended.is_set():
                size = size % 2**20 + 4096  # another one each time: what is cached asks no driver
                kept = [*kept[-4:], torch.empty(size, dtype=torch.uint8, pin_memory=True)]
                with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
                    kept[-1].to("cuda", non_blocking=True).cpu()
        except Exception as error:  # noqa: BLE001 - told below
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wanted, _ = weights_after(recipe(), CUDA)
        for _ in range(20):
            found, _ = weights_after(recipe(), replace(CUDA, cuda_graph=True))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert problems == []
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_compiled_step_ends_where_single_operations_end(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compile_nothing(function: Any, **options: Any) -> Any:
        compiled.append(options)
        return copy.copy(function)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    weights, losses = weights_after(recipe(), CPU)
    found, found_losses = weights_after(recipe(), replace(CPU, compiled=True))
    assert compiled == [{"dynamic": False}]
    assert found_losses == losses
    assert all(torch.equal(a, b) for a, b in zip(found, weights, strict=True))
