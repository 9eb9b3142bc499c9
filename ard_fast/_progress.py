"""Progress of training runs and evaluations: lines of a fixed-width table, and a bar on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping, Sequence
from textwrap import fill
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
QUIET_SECONDS = 30.0  # without a terminal, at most one line in this time about what is under way
_GROWTH = 0.25  # and, of one run among several, ever more rarely: each a quarter later
_BEAT_SECONDS = 1.0  # between two drawings of a bar at least, so that its clock runs whatever the process is doing
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {n:,.0f}/{total:,.0f} img [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
_BAR_OF_ONE = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}, {rate_fmt}{postfix}]"  # of several runs


def wrapped(line: str) -> str:
    """A line of facts, indented, in at most 100 columns."""
    return fill(
        line, 100, initial_indent="  ", subsequent_indent="      ", break_long_words=False, break_on_hyphens=False
    )


def time_left(elapsed: float, share: float) -> str:
    """The time that the rest takes, as [h:]mm:ss, if `share` of the work took `elapsed` seconds; "?" for none."""
    return tqdm.format_interval(elapsed * (1.0 - share) / share) if share > 0 else "?"


class Display:
    """Prints lines to standard output and, where standard error is a terminal, a bar of images below them."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._over = threading.Event()

    def start_bar(self, total: int, *, done: int = 0, label: str, form: str = _BAR) -> None:
        """Show a bar for `total` images, `done` of them done before, in place of the former one."""
        self.close()
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=label,
                unit="img",
                unit_scale=True,
                leave=False,
                dynamic_ncols=True,
                bar_format=form,
            )
            self._over = threading.Event()
            threading.Thread(target=_redraw, args=(self._bar, self._over), daemon=True).start()

    def show_on_bar(self, done: float, note: str = "") -> bool:
        """Move the bar to `done` images; false where there is none."""
        if self._bar is None:
            return False
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
        self._over.set()
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _redraw(bar: tqdm[Any], over: threading.Event) -> None:
    while not over.wait(_BEAT_SECONDS):
        bar.refresh()


class Progress(Display):
    """Prints a training run, a line an epoch; one of several (`whole`) leaves its lines to them.

    "train %" is the accuracy on the images of the student's updates. On a terminal there is a bar with images a second
    and the time left; elsewhere a plain line now and then.

    Args:
        total_steps: of the whole run.
        done_steps: of them, done before.
        steps_per_epoch: for the plain lines inside an epoch.
        images_per_step: for images a second.
        whole: the runs that this one belongs to.
    """

    def __init__(
        self,
        total_steps: int,
        done_steps: int = 0,
        *,
        steps_per_epoch: int = 1,
        images_per_step: int = 1,
        whole: Whole | None = None,
    ) -> None:
        super().__init__()
        self._total, self._done, self._first = total_steps, done_steps, done_steps
        self._steps_per_epoch, self._images, self._whole = steps_per_epoch, images_per_step, whole
        self._started = self._last_line = time.monotonic()
        label, form = ("  training", _BAR) if whole is None else (f"  {whole.label}", _BAR_OF_ONE)
        self.start_bar(total_steps * images_per_step, done=done_steps * images_per_step, label=label, form=form)
        if whole is None:
            self.say("  " + "  ".join(f"{title:>{width}}" for title, _, width in _COLUMNS))

    def step(self) -> None:
        """A step is done."""
        self._done += 1
        self._show("" if self._whole is None else self._epoch())

    def evaluating(self, what: str, done: int, total: int) -> None:
        """An evaluation is under way, `done` of its images are attacked."""
        self._show(f"{what}: {done:,}/{total:,}")

    def warn(self, text: str) -> None:
        """Print a warning of the run."""
        self.say(f"  warning{'' if self._whole is None else f', {self._whole.label}'}: {text}")

    def _show(self, note: str) -> None:
        if self._bar is not None:
            left = "" if self._whole is None else f"; {self._whole.time_left(self._share())} left of all"
            self.show_on_bar(self._done * self._images, note + left)
            return
        now = time.monotonic()
        quiet = QUIET_SECONDS
        if self._whole is not None:
            quiet = max(2 * QUIET_SECONDS, _GROWTH * (now - self._started))
        if now - self._last_line < quiet:
            return
        if self._whole is not None:
            self.say(f"  {self._whole.label}: {note}, {self._whole.time_left(self._share())} left of all")
        elif note:
            # After the last step only evaluations are left, whose time is not known.
            self.say(f"  {note} images" + (f", {self.time_left()} left" if self._done < self._total else ""))
        else:
            step = (self._done - 1) % self._steps_per_epoch + 1
            rate = self._images * (self._done - self._first) / (now - self._started)
            self.say(
                f"  in {self._epoch()}: step {step} of {self._steps_per_epoch}, {rate:.0f} img/s, "
                f"{self.time_left()} left"
            )

    def _epoch(self) -> str:
        return f"epoch {(self._done - 1) // self._steps_per_epoch + 1}/{self._total // self._steps_per_epoch}"

    def _share(self) -> float:
        """Of this process's part of the run that is done."""
        return (self._done - self._first) / max(self._total - self._first, 1)

    def time_left(self) -> str:
        """Until the last epoch is done, as [h:]mm:ss, from the mean time of a step so far, validation included."""
        return time_left(time.monotonic() - self._started, self._share())

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Print an epoch's line."""
        if self._whole is not None:
            return
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


class Whole(Display):
    """Prints several runs, a line each when it is finished, with the time left of all.

    Runs of one name are taken to last equally long, those of a name not seen yet as long as the others on average.

    Args:
        runs: (name, seed) of every run, in order.
    """

    def __init__(self, runs: Sequence[tuple[str, int]]) -> None:
        super().__init__()
        self._runs, self._index = list(runs), 0
        self._seconds: dict[str, list[float]] = {}  # of the finished runs, by name
        self._started = time.monotonic()
        self._width = max(len(name) for name, _ in runs)
        self.say(f"  {'run':>5}  {'':{self._width}}  seed  clean %  PGD-20 %     time     left")

    @property
    def label(self) -> str:
        """Which run is under way."""
        name, seed = self._runs[self._index]
        return f"{self._index + 1}/{len(self._runs)} {name}, seed {seed}"

    def time_left(self, share: float = 0.0) -> str:
        """Of all runs, as [h:]mm:ss, when that share of the present one is done."""
        means = {name: sum(values) / len(values) for name, values in self._seconds.items()}
        elapsed, now = time.monotonic() - self._started, self._runs[self._index :]
        if share > 0 and now:
            means.setdefault(now[0][0], elapsed / share)
        if not means:
            return "?"
        typical = sum(means.values()) / len(means)
        total = sum(means.get(name, typical) for name, _ in now)
        return tqdm.format_interval(max(total - elapsed, 0.0))

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Print the line of the present run, by its summary."""
        name, seed = self._runs[self._index]
        self._seconds.setdefault(name, []).append(summary["elapsed_s"])
        self._index, self._started = self._index + 1, time.monotonic()
        place = f"{self._index}/{len(self._runs)}"
        self.say(
            f"  {place:>5}  {name:{self._width}}  {seed:>4}  {summary['clean_acc']:>7.2f}  "
            f"{summary['pgd20_acc']:>8.2f}  {tqdm.format_interval(summary['elapsed_s']):>7}  {self.time_left():>7}"
        )
