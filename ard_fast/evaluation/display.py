"""What a person sees while attacks run: the table as it grows, and how far the present attack is."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

from ard_fast.evaluation.results import fixed_width, header_cells, stage_cells, step_cells
from ard_fast.evaluation.runner import Listener, StageResult, Step, StepResult

# Without a terminal, a line about an attack under way after this time, then ever more rarely: each a quarter later.
_QUIET_SECONDS, _GROWTH = 5.0, 0.25


class Display(Listener):
    """Prints to standard output; on a terminal a bar shows the attack under way, elsewhere plain lines do."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._name, self._count, self._done, self._left = "", 0, 0, 0
        self._passes = self._passes_before = 0
        self._started = self._last_line = 0.0

    def header(self) -> None:
        """Print the table's titles."""
        self._say(fixed_width(header_cells()))

    def stage_started(self, name: str, count: int) -> None:
        self.close()
        self._name, self._count, self._done, self._left = name, count, 0, count
        self._started = self._last_line = time.monotonic()
        self._passes_before = self._passes
        if sys.stderr.isatty():
            self._bar = tqdm(total=count, desc=f"  {name}", unit="img", leave=False, dynamic_ncols=True)

    def tick(self, forwards: int) -> None:
        self._passes = forwards
        if self._bar is None and self._name:
            self._line()

    def batch_done(self, done: int, left: int) -> None:
        self._done, self._left = done, left
        if self._bar is not None:
            self._bar.update(done - self._bar.n)
            self._bar.set_postfix_str(f"{left} still right")
        elif done < self._count:
            self._line()

    def _line(self) -> None:
        """Say how far the present attack is, unless the line before is fresh."""
        now = time.monotonic()
        elapsed = now - self._started
        if now - self._last_line < max(_QUIET_SECONDS, _GROWTH * elapsed):
            return
        self._last_line = now
        passes = self._passes - self._passes_before
        text = f"    {self._name}: {elapsed:.0f} s, {passes:,} passes, {self._done} of {self._count} images done"
        if self._done:
            text += f", {self._left} still right, about {elapsed * (self._count - self._done) / self._done:.0f} s to go"
        self._say(text)

    def stage_done(self, step: Step, result: StageResult, total: int) -> None:
        self.close()
        self._say(fixed_width(stage_cells(result, total)))

    def step_done(self, result: StepResult) -> None:
        self.close()
        self._say(fixed_width(step_cells(result)))

    def close(self) -> None:
        """Remove the bar; the present attack is over."""
        self._name = ""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, line: str) -> None:
        print(line, flush=True)
