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
    ("left", "{left:>8}", 8),
)
_SILENT_SECONDS = 30.0  # inside a long epoch, a sign of life this often where there is no bar
_QUIET_SECONDS = 2.0  # a run of short epochs prints a line this often, a run of long ones a line an epoch


class Progress:
    """Prints the lines of one run. "train %" is the accuracy on what the student was updated on.

    On a terminal there is a bar with images a second and the time left; elsewhere a plain line now and then.

    Args:
        total_steps: of the whole run.
        done_steps: of them, done before.
        steps_per_epoch: for the plain lines inside an epoch.
        images_per_step: for the rate.
    """

    def __init__(
        self, total_steps: int, done_steps: int = 0, *, steps_per_epoch: int = 1, images_per_step: int = 1
    ) -> None:
        self._total, self._done, self._first = total_steps, done_steps, done_steps
        self._steps_per_epoch, self._images = steps_per_epoch, images_per_step
        self._bar = (
            tqdm(
                total=total_steps * images_per_step,
                initial=done_steps * images_per_step,
                unit="img",
                unit_scale=True,
                leave=False,
                dynamic_ncols=True,
            )
            if sys.stderr.isatty()
            else None
        )
        self._started = time.monotonic()
        self._last_line = 0.0
        self._last_sign = self._started
        self._say("  " + "  ".join(f"{title:>{width}}" for title, _, width in _COLUMNS))

    def step(self) -> None:
        """A step is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._images)
        elif time.monotonic() - self._last_sign >= _SILENT_SECONDS:
            epoch, step = divmod(self._done - 1, self._steps_per_epoch)
            rate = self._images * (self._done - self._first) / (time.monotonic() - self._started)
            self._say(
                f"  in epoch {epoch + 1}: step {step + 1} of {self._steps_per_epoch}, {rate:.0f} img/s, "
                f"{self.time_left()} left"
            )

    def time_left(self) -> str:
        """Until the last epoch is done, as [h:]mm:ss, from the mean step of this process; validation counts."""
        done = self._done - self._first
        if not done:
            return "?"
        return tqdm.format_interval((time.monotonic() - self._started) / done * (self._total - self._done))

    def epoch(self, row: Mapping[str, Any], *, last: bool) -> None:
        """Print an epoch's line, unless the line before it is very fresh."""
        now = time.monotonic()
        if not last and now - self._last_line < _QUIET_SECONDS:
            return
        self._last_line = now
        cells = []
        for _, template, width in _COLUMNS:
            try:
                cells.append(template.format(**row, left=self.time_left()))
            except (KeyError, TypeError):  # an epoch without validation
                cells.append("-".rjust(width))
        self._say("  " + "  ".join(cells))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def _say(self, line: str) -> None:
        self._last_sign = time.monotonic()
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)
