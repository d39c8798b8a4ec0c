"""One of several processes that fit together, by torch.distributed: gloo on the CPU, NCCL between GPUs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final, NoReturn, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, TCPStore  # torch.distributed has them, but does not say so

from contracts.errors import FitError, RecipeError
from services.training.checkpoint_file import Snapshot
from services.training.device import Plan
from services.training.distributed.bucket import Bucket
from services.training.distributed.layers import joined
from services.training.distributed.place import Place
from services.training.distributed.signs import Signs
from services.training.fit_state import FitState
from services.training.group import Group
from services.training.networks import ServedGraph

LOST: Final = 75
"""How a worker ends that goes on when its group is started again (EX_TEMPFAIL of sysexits.h)."""
_TIMEOUT: Final = timedelta(minutes=30)
"""How long a worker waits for the others: the first one measures, logs and looks inside between two of their calls."""
_BACKENDS: Final = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}


class WorkerLost(SystemExit):
    """Another worker is gone. No Exception: nothing has failed, and the group goes on from its last checkpoint."""

    def __init__(self, reason: str) -> None:
        super().__init__(LOST)
        self.reason = reason

    def __str__(self) -> str:
        return f"another worker is gone: {self.reason}"


class Workers(Group):
    """This process and the others; what it gets from them is the same in all of them, to the bit."""

    def __init__(self, place: Place, device: str, signs: Signs | None = None) -> None:
        """Of a process group of torch's that is there; see `join`."""
        self.rank, self.size, self.restarts = place.rank, place.size, place.restarts
        self.signs = signs
        self.images = 0
        self.rows = (0, 0)
        self._device = torch.device(device)
        self._bucket: Bucket | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> Self:
        return self  # the layers of a network hold it, and networks are copied

    def plan(self, plan: Plan) -> Plan:
        """The plan as the group can follow it: what workers exchange in a step can be neither captured nor compiled."""
        return replace(
            plan, cuda_graph=False, compiled=False, threads=min(plan.threads, max(1, torch.get_num_threads()))
        )

    def tell(self, content: dict[str, Any]) -> None:
        """See `Group`."""
        data = torch.frombuffer(bytearray(json.dumps(content).encode()), dtype=torch.uint8)
        self._broadcast(torch.tensor([len(data)]))
        self._broadcast(data)

    def told(self) -> dict[str, Any]:
        """What the first worker tells next."""
        size = torch.zeros(1, dtype=torch.int64)
        self._broadcast(size)
        data = torch.empty(int(size), dtype=torch.uint8)
        self._broadcast(data)
        content: dict[str, Any] = json.loads(data.numpy().tobytes())
        return content

    def same_weights(self, graph: ServedGraph) -> None:
        """See `Group`."""
        for value in graph.state_dict().values():
            self._broadcast(_flat(value))

    def same_state(self, state: FitState) -> None:
        """See `Group`."""
        if self.first:
            snapshot = state.snapshot()
            kinds = [(name, *_kind(value)) for name, value in snapshot.tensors.items()]
            self.tell({"epoch": snapshot.epoch, "batch": snapshot.batch, "state": snapshot.state, "tensors": kinds})
            for value in snapshot.tensors.values():
                self._broadcast(_flat(value))
            return
        told = self.told()
        tensors = {name: self._empty(*kind) for name, *kind in told["tensors"]}
        for value in tensors.values():
            self._broadcast(_flat(value))
        state.restore(Snapshot(epoch=told["epoch"], batch=told["batch"], tensors=tensors, state=told["state"]))

    def joined(self, graph: ServedGraph) -> AbstractContextManager[object]:
        """See `Group`."""
        return joined(graph.network, self)

    def begin_batch(self, images: int) -> None:
        """See `Group`."""
        self.images, self.rows = images, self.share(0, images)

    def weighed(self, loss: Tensor, images: int) -> Tensor:
        """See `Group`; of no images the mean is not a number, and its part is nothing."""
        return loss * (images / self.images)

    def added(self, parameters: Iterable[nn.Parameter], loss: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """See `Group`."""
        own = self.rows[1] - self.rows[0]
        mean = loss.float() * (own / self.images) if own else torch.zeros_like(loss, dtype=torch.float32)
        if self._bucket is None:
            self._bucket = Bucket(parameters)
        whole_loss, whole_right = self._bucket.add(torch.stack((mean, right)), self._add).unbind()
        return whole_loss, whole_right

    def total(self, values: Tensor) -> Tensor:
        """See `Group`; in place."""
        self._add(values)
        return values

    def gathered(self, values: Tensor) -> Tensor:
        """(workers, *shape): all workers' values, from the first worker's."""
        everyone = [torch.empty_like(values) for _ in range(self.size)]
        with self._together():
            dist.all_gather(everyone, values)
        return torch.stack(everyone)

    def leave(self) -> None:
        """This worker has done its part; where it is the first one, it is over for all."""
        if self.signs is not None:
            if self.first:
                self.signs.tell_over()
            self.signs.stop()

    def _add(self, values: Tensor) -> None:
        with self._together():
            dist.all_reduce(values)

    def _broadcast(self, values: Tensor) -> None:
        if values.numel():
            with self._together():
                dist.broadcast(values, src=0)

    def _empty(self, dtype: str, shape: list[int], strides: list[int], device: str) -> Tensor:
        where = self._device if device == self._device.type else torch.device("cpu")
        return torch.empty_strided(shape, strides, dtype=getattr(torch, dtype), device=where)

    @contextmanager
    def _together(self) -> Iterator[None]:
        """The context of a call that all workers make.

        Raises:
            FitError: another worker cannot go on, and has said why.
            WorkerLost: another worker is gone, and has said nothing.
        """
        try:
            yield
        except RuntimeError as error:
            self._stranded(error)

    def _stranded(self, error: RuntimeError) -> NoReturn:
        if self.signs is not None:
            if not self.first and self.signs.wait_until_over(1.0):
                raise SystemExit(0) from error
            if (problem := self.signs.problem()) is not None:
                raise FitError(f"worker {problem[0]}: {problem[1]}") from error
        raise WorkerLost((str(error).strip().splitlines() or [type(error).__name__])[-1][:200]) from error


def join(place: Place, device: str) -> Workers:
    """Take a place in the group, and wait for the others.

    Args:
        place: Of this process.
        device: cpu or cuda, the same for all.

    Raises:
        RecipeError: there are fewer GPUs here than workers.
        WorkerLost: the others do not come.
    """
    if device == "cuda":
        if place.local_rank >= torch.cuda.device_count():
            raise RecipeError(too_many(place.local_rank + 1, torch.cuda.device_count()))
        torch.cuda.set_device(place.local_rank)  # `cuda` is this one from here on
    try:
        signs = Signs(_store(place, host=False), first=place.rank == 0) if place.hosted else None
        if not dist.is_initialized():  # Ray Train has done it
            dist.init_process_group(
                _BACKENDS[device],
                store=_store(place, host=place.rank == 0 and not place.hosted),
                rank=place.rank,
                world_size=place.size,
                timeout=_TIMEOUT,
            )
        if signs is None:
            signs = Signs(_store(place, host=False), first=place.rank == 0)
    except RuntimeError as error:
        raise WorkerLost(str(error).strip().splitlines()[0][:200]) from error
    signs.start()
    return Workers(place, device, signs)


def too_many(workers: int, gpus: int) -> str:
    """What is said where there are fewer GPUs than workers."""
    return (
        f"--workers is {workers}, but {'one GPU is' if gpus == 1 else f'{gpus} GPUs are'} here and each worker takes "
        f"one; give {gpus} at most, or set STRIDE_DEVICE=cpu."
    )


def _store(place: Place, *, host: bool) -> Any:
    """The store of this start of the group: an earlier one's keys are not to be found in it."""
    store = TCPStore(
        place.address, place.port, is_master=host, wait_for_workers=False, timeout=_TIMEOUT, multi_tenant=True
    )
    return PrefixStore(f"stride/{place.restarts}", store)


def _flat(values: Tensor) -> Tensor:
    """The bytes of a tensor in the order of memory, whatever its strides; they are the tensor's own."""
    return values.detach().as_strided((values.numel(),), (1,)).view(torch.uint8)


def _kind(values: Tensor) -> tuple[str, list[int], list[int], str]:
    return str(values.dtype).removeprefix("torch."), list(values.shape), list(values.stride()), values.device.type
