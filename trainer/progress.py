"""Shows how far work has come: a bar on a terminal, a line now and then elsewhere."""

import os
import sys
import time
from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sized
from typing import TypeVar

import tqdm

T = TypeVar("T")


class Progress:
    """Shows on stderr how many of `total` items are done, and the time left.

    On a terminal it is a bar. Elsewhere, in a log file for one, a line is printed
    after the first item, then every `seconds`, and at the end. With TQDM_DISABLE in
    the environment nothing is shown.

    Args:
        total: items in all; None: not known.
        start: items that were done before.
        label: in front of every line.
        unit: name of an item.
        seconds: between two lines.
    """

    def __init__(self, total=None, start=0, label="", unit="step", seconds=30.0):
        self.done = start
        self._total = total
        self._label = f"{label}: " if label else ""
        self._unit = unit
        self._seconds = seconds
        self._figures = None
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=start,
                desc=label,
                unit=unit,
                file=sys.stderr,
                mininterval=0.5,
                dynamic_ncols=True,
            )
        self._shown = start, time.monotonic()  # the last line: items, time
        self._printed = False
        self._silent = bool(os.environ.get("TQDM_DISABLE"))

    def update(self, figures=None):
        """Counts one more item.

        Args:
            figures: None, or a function of the items a second that returns a dict of
                texts to show.
        """
        self.done += 1
        if self._bar is not None:
            if figures:
                rate = self._bar.format_dict["rate"] or 0.0
                self._bar.set_postfix(figures(rate), refresh=False)
            self._bar.update()
            return
        self._figures = figures
        if not self._printed or time.monotonic() >= self._shown[1] + self._seconds:
            self._print()

    def close(self):
        """Shows the last state."""
        if self._bar is not None:
            self._bar.close()
        elif self.done != self._shown[0]:
            self._print()

    def _print(self):
        if self._silent:
            return
        now = time.monotonic()
        items, then = self._shown
        rate = (self.done - items) / (now - then) if now > then else 0.0
        parts = [f"{self._unit} {self.done:,}"]
        if self._total:
            parts[0] += f" of {self._total:,}"
        if self._figures:
            parts += [f"{name}={value}" for name, value in self._figures(rate).items()]
        else:
            parts.append(_speed(rate))
        if self._total and rate and self._printed:
            left = tqdm.tqdm.format_interval((self._total - self.done) / rate)
            parts.append(f"{left} left")
        print(self._label + ", ".join(parts), file=sys.stderr, flush=True)
        self._shown = self.done, now
        self._printed = True


def over(
    items: Iterable[T], label: str = "", unit: str = "step", seconds: float = 30.0
) -> Iterator[T]:
    """Yields items, and shows how many are done: those after which another is asked.

    Args:
        items: the time left is shown where their number is known.
        label, unit, seconds: as `Progress` takes them.
    """
    total = len(items) if isinstance(items, Sized) else None
    shown = Progress(total, label=label, unit=unit, seconds=seconds)
    try:
        for item in items:
            yield item
            shown.update()
    finally:
        shown.close()


def _speed(rate):
    """Returns items a second in words, also where one takes many seconds."""
    if 0 < rate < 1:
        return f"{1 / rate:,.1f} seconds each"
    return f"{rate:,.0f} a second"


def write(text):
    """Prints a line to stderr, above a bar that is shown there."""
    tqdm.tqdm.write(text, file=sys.stderr)
