"""Progress of a training run or an evaluation: lines of a fixed-width table, and a bar on a terminal."""

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
_INSIDE_EPOCH_SECONDS = 30.0  # without a terminal, a line this often inside a long epoch
_BETWEEN_EPOCHS_SECONDS = 2.0  # short epochs print a line this often, long ones a line an epoch


class Display:
    """Prints lines to standard output and, where standard error is a terminal, a bar of images below them."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def start_bar(self, total: int, *, done: int = 0, label: str | None = None) -> None:
        """Show a bar for `total` images, `done` of them done before, in place of the former one."""
        self.close()
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=done, desc=label, unit="img", unit_scale=True, leave=False, dynamic_ncols=True
            )

    def show_on_bar(self, done: int, note: str = "") -> bool:
        """Move the bar to `done` images; false where there is none."""
        if self._bar is None:
            return False
        if done != self._bar.n:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(done - self._bar.n)
        return True

    def say(self, line: str) -> None:
        """Print a line, above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stdout)
        else:
            print(line, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Progress(Display):
    """Prints a training run, a line an epoch. "train %" is the accuracy on the images of the student's updates.

    On a terminal there is a bar with images a second and the time left; elsewhere a plain line now and then.

    Args:
        total_steps: of the whole run.
        done_steps: of them, done before.
        steps_per_epoch: for the plain lines inside an epoch.
        images_per_step: for images a second.
    """

    def __init__(
        self, total_steps: int, done_steps: int = 0, *, steps_per_epoch: int = 1, images_per_step: int = 1
    ) -> None:
        super().__init__()
        self._total, self._done, self._first = total_steps, done_steps, done_steps
        self._steps_per_epoch, self._images = steps_per_epoch, images_per_step
        self._started = self._last_line = time.monotonic()
        self._last_epoch = 0.0
        self.start_bar(total_steps * images_per_step, done=done_steps * images_per_step)
        self.say("  " + "  ".join(f"{title:>{width}}" for title, _, width in _COLUMNS))

    def step(self) -> None:
        """A step is done."""
        self._done += 1
        if self.show_on_bar(self._done * self._images):
            return
        if time.monotonic() - self._last_line >= _INSIDE_EPOCH_SECONDS:
            epoch, step = divmod(self._done - 1, self._steps_per_epoch)
            rate = self._images * (self._done - self._first) / (time.monotonic() - self._started)
            self.say(
                f"  in epoch {epoch + 1}: step {step + 1} of {self._steps_per_epoch}, {rate:.0f} img/s, "
                f"{self.time_left()} left"
            )

    def time_left(self) -> str:
        """Until the last epoch is done, as [h:]mm:ss, from the mean time of a step so far, validation included."""
        done = self._done - self._first
        if not done:
            return "?"
        return tqdm.format_interval((time.monotonic() - self._started) / done * (self._total - self._done))

    def epoch(self, row: Mapping[str, Any], *, last: bool) -> None:
        """Print an epoch's line, unless the previous one is very recent."""
        now = time.monotonic()
        if not last and now - self._last_epoch < _BETWEEN_EPOCHS_SECONDS:
            return
        self._last_epoch = now
        cells = []
        for _, template, width in _COLUMNS:
            try:
                cells.append(template.format(**row, left=self.time_left()))
            except (KeyError, TypeError):  # an epoch without validation
                cells.append("-".rjust(width))
        self.say("  " + "  ".join(cells))

    def say(self, line: str) -> None:
        self._last_line = time.monotonic()
        super().say(line)
