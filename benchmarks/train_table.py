"""Trains and evaluates a table of methods, in as many sittings as it takes: run it again until it says "finished".

    python benchmarks/train_table.py benchmarks/plans/mnist.yaml --out runs/mnist --data-dir data --minutes 8
    python benchmarks/train_table.py benchmarks/plans/mnist.yaml --out runs/mnist --data-dir data \
        --record benchmarks/results/table_mnist.json

A plan is a YAML file:

    seeds: [0, 1, 2]                      # of every row that has none of its own
    attacks: pgd20,apgd-t                 # of the evaluations, on the test images (`test_subset` says how many)
    parts: 4                              # pieces of one evaluation, each of which has to fit into a sitting
    settings: {dataset: mnist, ...}       # of every run: the keys that `python -m ard_fast.train --help-all` shows
    teachers:                             # by name; a single seed serves all students, several serve their own
      teacher: {method: at, student: resnet18, seeds: [0]}
    rows:                                 # by label; a preset, then `settings`, then the row's own
      AT: {method: at, published: {clean: 87.1, pgd20: 45.8, source: where that is from}}
      AT-EMA: {preset: at-ema}
      ARD: {method: ard, teacher: teacher, seeds: [0]}

`settings` that a method does not have are left out of its run. Each run and each part of an evaluation is a process of
its own (`python -m ard_fast.train`, `python -m ard_fast.evaluate`) with a folder and a log in DIR; what is finished is
not done again, what was stopped or killed goes on. On a CPU each has one thread, on a GPU there is one at a time. The
order: evaluations of what is trained, then training, the first seed of every row before the second.

Training costs the processor time of its process, validation included: wall time says little on a busy machine.

Exit code 0: finished; 1: a run failed; 2: wrong arguments; 130: stopped, run it again.
"""

# ruff: noqa: E402 - the clock starts before the imports, which take seconds
from __future__ import annotations

import argparse
import ctypes
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

_BEGUN = time.monotonic()

from _table_plan import Plan, Run, read_plan, slug
from _table_record import collect, groups, record, table

from ard_fast._commandline import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, StopRequest
from ard_fast._files import append_line, lock_folder, write_text
from ard_fast.training.config import identity, parse, to_yaml
from ard_fast.training.finished import read_evaluation

ROOT = Path(__file__).resolve().parents[1]
_POLL_SECONDS = 0.1
_LAST_SECONDS = 30.0  # for checkpoints at the end of a sitting, or a tenth of it


# ---- what is to do --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A process: training of a run, or a part of its evaluation."""

    name: str
    command: tuple[str, ...]
    writes: Path


def training(run: Run, out: Path) -> Task | None:
    """What trains a run, or None if it is finished.

    Raises:
        ValueError: its folder is of other settings.
    """
    folder = run.folder
    if folder.summary() is not None:
        return None
    begun = folder.config_file.is_file()
    config = out / "configs" / f"{folder.path.name}.yaml"
    flags = ["--resume", str(folder.path)] if begun else ["--config", str(config), "--out", str(folder.path)]
    if not begun:
        config.parent.mkdir(parents=True, exist_ok=True)
        write_text(config, to_yaml(run.config))
    return Task(f"train {folder.path.name}", ("ard_fast.train", *flags, *_places(run)), folder.path)


def evaluations(run: Run, plan: Plan) -> Iterator[Task]:
    """What evaluates a trained run under the attacks that it lacks."""
    for part in range(1, plan.parts + 1) if run.folder.summary() is not None else ():
        these = [part, plan.parts] if plan.parts > 1 else None
        missing = [name for name in plan.attacks if name != "pgd20" and name not in _evaluated(run, these)]
        if missing:
            where, number = ("", "") if these is None else (f", part {part} of {plan.parts}", f"-{part}of{plan.parts}")
            folder = run.folder.path / f"evaluation-{slug('-'.join(missing))}{number}"
            flags = ["--attacks", ",".join(["clean", *missing]), "--eps-curve", "none", "--out", str(folder)]
            flags += [] if these is None else ["--part", f"{part}/{plan.parts}"]
            flags += ["--model", run.config.student] if ":" in run.config.student else []
            command = ("ard_fast.evaluate", str(run.folder.path), *flags, *_places(run))
            yield Task(f"evaluate {run.folder.path.name}{where}", command, folder)


def _evaluated(run: Run, part: list[int] | None) -> set[str]:
    """The attacks under which these images were evaluated as the table wants it."""
    found = [read_evaluation(file, run.config) for file in run.folder.path.glob("evaluation*/results.json")]
    return {name for attacks, _, of in found if (of and list(of[:2])) == part for name in attacks}


def _places(run: Run) -> list[str]:
    data = [] if run.config.data_dir is None else ["--data-dir", run.config.data_dir]
    return [*data, "--device", run.config.device, "--threads", str(run.config.threads)]


def check_folders(plan: Plan) -> None:
    """Refuse a folder whose runs were begun with other settings.

    Raises:
        ValueError: names the first run and setting.
    """
    for run in plan.runs:
        if run.folder.config_file.is_file():
            before, now = identity(run.folder.config()), identity(run.config)
            differing = [f"{key} {before[key]} -> {now[key]}" for key in now if before[key] != now[key]]
            if differing:
                raise ValueError(
                    f"out: {run.folder.path} has other settings: {', '.join(differing)}; remove it or choose "
                    "another folder"
                )


def left_to_do(plan: Plan, out: Path) -> Iterator[Task]:
    """Every process that may start now, in order; what waits for a teacher is not among them."""
    for run in plan.runs:
        yield from evaluations(run, plan)
    for run in plan.runs:
        task = training(run, out) if run.is_ready() else None
        if task is not None:
            yield task


# ---- a sitting ------------------------------------------------------------------------------------------------------


def work(
    plan: Plan, out: Path, jobs: int, stop: StopRequest, *, begun: float, seconds: float | None = None
) -> list[str]:
    """Start what is left to do, `jobs` at a time, until all is done, the time is over or a stop is requested.

    Args:
        plan: the table.
        out: its folder.
        jobs: processes at a time.
        stop: asked ten times a second.
        begun: the sitting's beginning, on `time.monotonic`'s clock.
        seconds: its length; None for as long as it takes.

    Returns:
        The names of tasks that failed.
    """
    running, failed = dict[str, subprocess.Popen[bytes]](), list[str]()
    end = None if seconds is None else begun + seconds
    soon = None if end is None else end - min(_LAST_SECONDS, 0.1 * (end - begun))
    stopping, changed = False, True
    while True:
        if not stopping and (stop.requested or (soon is not None and time.monotonic() >= soon)):
            stopping = True
            for process in running.values():
                process.send_signal(signal.SIGTERM)  # as SIGINT, but may be repeated
        if changed and not stopping:
            for task in left_to_do(plan, out):
                if len(running) >= jobs:
                    break
                if task.name not in (*running, *failed):
                    running[task.name] = _start(task, out)
            changed = False
        if not running:
            return failed
        if end is not None and time.monotonic() >= end:
            for process in running.values():
                process.kill()  # the run goes on from its last checkpoint
        for name, process in list(running.items()):
            if process.poll() is not None:
                del running[name]
                changed = True
                if process.returncode and not stopping:
                    failed.append(name)
                    _say(f"{name}: failed with exit code {process.returncode}, see {_log(name, out)}")
                else:
                    _say(f"{name}: {'stopped' if process.returncode else 'finished'}")
        time.sleep(_POLL_SECONDS)


def _start(task: Task, out: Path) -> subprocess.Popen[bytes]:
    if task.command[0] == "ard_fast.evaluate":
        shutil.rmtree(task.writes, ignore_errors=True)  # stopped or killed
    elif task.writes.is_dir():
        _wait_until_free(task.writes)
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    append_line(out / "started.jsonl", json.dumps({"date": now, "commit": _commit(), "task": task.name}))
    _say(f"{task.name}: started")
    log = _log(task.name, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:  # in a session of its own: Ctrl-C reaches it through this process only
        return subprocess.Popen(
            [sys.executable, "-m", *task.command],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=_end_with_parent,
        )


def _end_with_parent() -> None:
    """Have Linux send this process a SIGTERM when the one that started it is killed."""
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _wait_until_free(folder: Path) -> None:
    """Wait a minute at most for the run of a sitting that was killed; after that the new one says that it is locked."""
    for _ in range(600):
        with suppress(ValueError), lock_folder(folder):
            return
        time.sleep(_POLL_SECONDS)


def _log(name: str, out: Path) -> Path:
    return out / "logs" / f"{slug(name)}.log"


def _commit() -> str | None:
    """The checkout's commit, with a mark if its files are not those of the commit."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True).stdout
    return found.stdout.strip() + "+changes" * bool(changed) if found.returncode == 0 else None


def _say(text: str) -> None:
    print(f"{datetime.now():%H:%M:%S}  {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    begun = _BEGUN if argv is None else time.monotonic()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("plan", type=Path, help="YAML file")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    add("--data-dir", metavar="DIR", help="where the images are")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:N or auto [the plan's, else auto]")
    add("--jobs", type=int, default=1, metavar="N", help="processes at a time on a CPU [1]")
    add("--minutes", type=float, metavar="M", help="stop before so many are over; 0 only shows the table")
    add("--record", type=Path, metavar="FILE", help="write all figures there as JSON")
    args = parser.parse_args(argv)
    given = [("data_dir", args.data_dir), ("device", args.device)]
    places = {name: value for name, value in given if value is not None}
    try:
        if args.jobs < 1:
            raise ValueError(f"jobs: expected at least 1, got {args.jobs}")
        out = args.out.absolute()
        plan = read_plan(args.plan, out, parse(places))
        check_folders(plan)
        jobs = 1 if any(run.config.device != "cpu" for run in plan.runs) else args.jobs
        failed = list[str]()
        if args.minutes != 0:
            with StopRequest() as stop, lock_folder(out):
                seconds = None if args.minutes is None else 60.0 * args.minutes
                failed = work(plan, out, jobs, stop, begun=begun, seconds=seconds)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    unfinished = [run for run in plan.runs if run.folder.summary() is None]
    parts = sum(len(list(evaluations(run, plan))) for run in plan.runs)
    complete = not unfinished and not parts
    print(f"\n{table(collect(plan))}\n")
    if args.record is not None and groups(plan):
        starts = [json.loads(line) for line in (out / "started.jsonl").read_text().splitlines()]
        command = f"python benchmarks/train_table.py {args.plan} --out DIR{' --data-dir DATA' * bool(args.data_dir)}"
        record(plan, args.record, starts, command=command, complete=complete)
    if complete:
        print("finished")
        return 0
    print(
        f"left: {len(unfinished)} of {len(plan.runs)} runs to train, {parts} evaluations of trained ones; run it again"
    )
    for run in unfinished:
        epochs = len(run.folder.metrics())
        if run.folder.config_file.is_file():
            print(f"  {run.folder.path.name}: {epochs} of {run.config.passes()} epochs")
    return EXIT_FAILED if failed else EXIT_INTERRUPTED


if __name__ == "__main__":
    raise SystemExit(main())
