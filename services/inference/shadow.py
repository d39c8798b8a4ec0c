"""The shadow: the challenger answers what the champion has answered; its answers are compared and thrown away.

It is asked after the champion's answer has been sent, and only when it has nothing else to do: what comes while it is
busy is dropped and counted. So no request waits for a shadow's, but for the one run that may be under way where the
challenger also answers a share of the requests.
"""

from __future__ import annotations

import asyncio
import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from contracts.errors import Overloaded
from services.inference.batch import Images, Probabilities
from services.inference.metrics import Metrics

if TYPE_CHECKING:
    from services.inference.model import Model


class Shadow:
    """Belongs to the event loop."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def offer(self, champion: Model, challenger: Model, images: Images, probabilities: Probabilities) -> None:
        """Have the challenger answer `images` too, unless there is no time for it.

        Args:
            images: uint8, (n, height, width, channels), of the input that both have.
            probabilities: float32, (n, classes), the champion's answers.
        """
        batcher = challenger.batcher
        # Where more than the next batch waits for the champion, every core is worth more to those.
        if champion.batcher.rows > champion.engine.max_batch:
            return self._drop(champion, "loaded")
        if batcher.rows:
            return self._drop(champion, "busy")
        try:
            batcher.admit(len(images))
        except Overloaded:  # what its clients have given up still lies in its queue
            return self._drop(champion, "busy")
        # The place is taken, so a challenger that is dismissed meanwhile still answers this. Submitted at once, the
        # run would compete with the sending of the champion's answer.
        asyncio.get_running_loop().call_soon(self._ask, champion, challenger, images, probabilities)
        return None

    def _ask(self, champion: Model, challenger: Model, images: Images, probabilities: Probabilities) -> None:
        future = challenger.batcher.submit(images, expires=math.inf, aside=True)
        future.add_done_callback(partial(self._compare, champion, challenger, probabilities))

    def _compare(
        self,
        champion: Model,
        challenger: Model,
        probabilities: Probabilities,
        future: asyncio.Future[Probabilities],
    ) -> None:
        challenger.batcher.release(len(probabilities))
        if future.cancelled() or future.exception() is not None:
            return self._drop(champion, "failed")
        answers = future.result()
        differing = int((answers.argmax(axis=1) != probabilities.argmax(axis=1)).sum())
        difference = float(np.abs(answers - probabilities).mean(axis=1).sum())
        if not math.isfinite(difference):  # of either's: a counter that has taken up a nan never leaves it again
            return self._drop(champion, "failed")
        self._metrics.compared(champion.name, challenger.version, len(probabilities), differing, difference)
        return None

    def _drop(self, champion: Model, reason: Literal["busy", "loaded", "failed"]) -> None:
        self._metrics.shadow_dropped.labels(champion.name, reason).inc()
