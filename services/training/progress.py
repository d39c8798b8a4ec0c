"""Where a fit is: a bar on a terminal, one plain line an epoch in a log, or nothing."""

from __future__ import annotations

import sys
import time
from typing import Any, Final, TextIO

_INTERVAL_S: Final = 0.25


class Progress:
    """Shows loss, accuracy, images/s and the time left of a fit."""

    def __init__(self, *, show: bool | None = None, stream: TextIO | None = None) -> None:
        """Make a progress display.

        Args:
            show: False shows nothing; None or True shows a bar on a terminal and lines elsewhere.
            stream: Where to; standard error by default.
        """
        self._stream = stream or sys.stderr
        self._show = show is not False
        self._bar: Any = None
        self._next = 0.0
        self._epochs = self._images = 0

    def start(self, *, epochs: int, images: int) -> None:
        self._epochs, self._images = epochs, images
        self._next = time.perf_counter() + _INTERVAL_S
        if self._show and self._stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=epochs * images, unit="img", unit_scale=True, file=self._stream, leave=False)

    def due(self) -> bool:
        """Whether it is time to look at the loss again; true a few times a second, also when nothing is shown."""
        now = time.perf_counter()
        if now < self._next:
            return False
        self._next = now + _INTERVAL_S
        return True

    def step(self, epoch: int, done: int, totals: list[float]) -> None:
        """Take the sums of loss and right answers over the `done` images of an epoch so far."""
        if self._bar is not None:
            self._bar.n = (epoch - 1) * self._images + done
            loss, accuracy = (total / done for total in totals)
            self._bar.set_postfix_str(f"epoch {epoch}/{self._epochs} loss {loss:.4f} accuracy {accuracy:.4f}")

    def epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        if not self._show:
            return
        line = (
            f"epoch {epoch}/{self._epochs}  loss {metrics['train/loss']:.4f}  accuracy {metrics['train/accuracy']:.4f}"
            f"  validation loss {metrics['validation/loss']:.4f}  accuracy {metrics['validation/accuracy']:.4f}"
            f"  lr {metrics['lr']:.2g}  {metrics['images_per_second']:,.0f} images/s"
        )
        self.note(line)

    def note(self, text: str) -> None:
        """Tell something in a line of its own."""
        if not self._show:
            return
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._stream.write(text + "\n")
            self._stream.flush()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
