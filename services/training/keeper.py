"""What a fit asks of whoever keeps its state while it runs, and the one who keeps nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from services.training.fit_state import FitState


class Keeper(Protocol):
    """See `services.training.checkpoints`."""

    def due(self, *, epoch_done: bool = False) -> bool:
        """Whether the state is to be saved now; asked between two steps, and after each epoch."""

    def save(self, state: FitState) -> None:
        """Save the state as it is; the fit goes on when this returns."""

    def running(self) -> AbstractContextManager[object]:
        """The context of the loop, in which signals wait until the state is whole."""

    def at_once(self, state: FitState) -> AbstractContextManager[object]:
        """The context of what may take long and leaves the state as it is: signals do not wait for its end."""


class Unkept:
    """Keeps nothing."""

    def due(self, *, epoch_done: bool = False) -> bool:  # noqa: ARG002
        return False

    def save(self, state: FitState) -> None: ...

    def running(self) -> AbstractContextManager[object]:
        return nullcontext()

    def at_once(self, state: FitState) -> AbstractContextManager[object]:  # noqa: ARG002
        return nullcontext()
