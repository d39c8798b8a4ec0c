"""BentoML's supervisor, circus, made to notice a dead worker at once: by itself it looks every ten seconds.

And made to stop listening when it ends, not after its workers have.

That time is a constant in BentoML, and a shorter one would raise a conflict in circus whenever a look falls into
another command. The kernel tells a process when its child ends, so nothing needs to be looked for.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Final

_PAUSE_S: Final = 0.5
"""Before the new worker is started: one that dies at its start is not to be started as fast as it dies."""


def notice_dead_workers() -> None:
    """To be called in the supervisor's process, before it makes its workers."""
    import circus.arbiter  # type: ignore[import-untyped]
    from circus.controller import Controller  # type: ignore[import-untyped]
    from circus.exc import ConflictError  # type: ignore[import-untyped]

    class Attentive(Controller):  # type: ignore[misc] # it is untyped
        def start(self) -> None:
            super().start()
            signal.signal(signal.SIGCHLD, self._told)
            self._circus_ends: Any = signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, self._end)

        def _told(self, _number: int, _frame: FrameType | None) -> None:
            self.loop.add_callback_from_signal(self.loop.call_later, _PAUSE_S, self._replace)

        def _end(self, number: int, frame: FrameType | None) -> None:
            # The workers go on taking connections for a moment. Were the socket still open here when they have closed
            # it, the kernel would go on as well, for nobody: a request on such a connection would be lost.
            for listening in self.arbiter.sockets.values():
                listening.close()
            self._circus_ends(number, frame)

        def _replace(self) -> None:
            try:
                self.arbiter.manage_watchers()
            except ConflictError:  # it is ending its workers, or starting them
                return

    circus.arbiter.Controller = Attentive
