"""The processes that fit together, as a fit sees them: one by itself here, one of several in `distributed.workers`.

All workers take every step on the same global batch, each on its share of the rows, and change their copies of the
weights in the same way. So the state of a fit is the same in all of them between two steps, and the first one alone
logs and saves it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

from torch import Tensor, nn

if TYPE_CHECKING:
    from services.training.device import Plan
    from services.training.fit_state import FitState
    from services.training.networks import ServedGraph


class Group:
    """One process by itself, for which each of these is a matter of course."""

    rank = 0
    size = 1
    """How many work together."""
    restarts = 0
    """How often the group was started again after a worker was lost."""

    @property
    def first(self) -> bool:
        """Whether this is the worker that logs, saves and reports."""
        return self.rank == 0

    def share(self, start: int, stop: int) -> tuple[int, int]:
        """(start, stop) of this worker's part of so many rows in a row.

        The parts differ by one row at most; some are empty where there are fewer rows than workers.
        """
        rows = stop - start
        return start + rows * self.rank // self.size, start + rows * (self.rank + 1) // self.size

    def plan(self, plan: Plan) -> Plan:
        """The plan as the group can follow it."""
        return plan

    def tell(self, content: dict[str, Any]) -> None:
        """Tell the other workers something that JSON can say; they take it with `Workers.told`."""

    # what the fit asks

    def same_weights(self, graph: ServedGraph) -> None:
        """Give all workers the first one's weights."""

    def same_state(self, state: FitState) -> None:
        """Give all workers the first one's state of the fit."""

    def joined(self, graph: ServedGraph) -> AbstractContextManager[object]:
        """While it is open, layers that look at the whole batch see that of the group, and not a part of it."""
        del graph
        return nullcontext()

    def begin_batch(self, images: int) -> None:
        """The next step is on a batch of so many images, those of all workers together."""

    # what a step asks

    def weighed(self, loss: Tensor, images: int) -> Tensor:
        """A worker's mean loss as its part of the group's, where it has so many images of the batch."""
        del images
        return loss

    def added(self, parameters: Iterable[nn.Parameter], loss: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Add up the parameters' gradients over the workers; gives the loss and the right answers of the batch."""
        del parameters
        return loss, right

    # what an evaluation asks

    def total(self, values: Tensor) -> Tensor:
        """The sum of the workers' values."""
        return values


ALONE: Final = Group()
