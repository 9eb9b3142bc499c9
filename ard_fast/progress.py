"""What a person sees while a run trains: a fixed-width table, and a bar where there is a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

_COLUMNS = (
    ("epoch", "{epoch:>5d}", 5),
    ("lr", "{lr:>8.5f}", 8),
    ("loss", "{train_loss:>9.4f}", 9),
    ("train %", "{train_acc:>7.2f}", 7),
    ("val %", "{val_clean:>7.2f}", 7),
    ("val PGD %", "{val_robust:>9.2f}", 9),
    ("img/s", "{images_per_s:>8.0f}", 8),
    ("time s", "{elapsed_s:>8.1f}", 8),
)
_QUIET_SECONDS = 2.0  # a run of short epochs prints a line this often, a run of long ones a line an epoch


class Progress:
    """Prints the lines of one run. "train %" is the accuracy on what the student was updated on."""

    def __init__(self, total_steps: int, done_steps: int = 0) -> None:
        self._bar = (
            tqdm(total=total_steps, initial=done_steps, unit="step", leave=False, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )
        self._last_line = 0.0
        self._say("  " + "  ".join(f"{title:>{width}}" for title, _, width in _COLUMNS))

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def epoch(self, row: Mapping[str, Any], *, last: bool) -> None:
        """Print an epoch's line, unless the line before it is very fresh."""
        now = time.monotonic()
        if not last and now - self._last_line < _QUIET_SECONDS:
            return
        self._last_line = now
        cells = []
        for _, template, width in _COLUMNS:
            try:
                cells.append(template.format(**row))
            except (KeyError, TypeError):  # an epoch without validation
                cells.append("-".rjust(width))
        self._say("  " + "  ".join(cells))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _say(self, line: str) -> None:
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)
