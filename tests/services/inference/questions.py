"""Questions to a batcher, whose answers can be told from every other's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.inference.batcher import Batcher

Rows = NDArray[Any]


def question(number: int, rows: int = 1) -> Rows:
    """Rows that hold the number, so that an answer can be told from every other."""
    return np.full((rows, 1, 1, 1), number, dtype=np.int64)


def echo(batch: Rows) -> Rows:
    if (batch < 0).any():
        raise ValueError("a row that the model cannot compute")
    return batch.reshape(len(batch), 1) * 2


def run(body: Callable[[Callable[..., Batcher]], Awaitable[None]]) -> None:
    async def main() -> None:
        made: list[Batcher] = []

        def make(infer: Callable[[Rows], Rows] = echo, **options: Any) -> Batcher:
            loop = asyncio.get_running_loop()
            made.append(Batcher(infer, loop=loop, **{"max_batch": 16, "queue_rows": 20_000, **options}))
            return made[-1]

        await body(make)
        for batcher in made:
            batcher.close()
            await asyncio.to_thread(batcher.thread.join, 5)
            assert not batcher.thread.is_alive()

    asyncio.run(main())


async def ask(batcher: Batcher, rows: Rows, deadline_s: float = 30) -> Rows:
    batcher.admit(len(rows))
    try:
        return await batcher.submit(rows, expires=time.perf_counter() + deadline_s)
    finally:
        batcher.release(len(rows))
