#!/usr/bin/env python3
"""Train again and again with something going wrong, and see that no run is lost or quietly wrong.

python scripts/soak.py --minutes 5
python scripts/soak.py --only nan --minutes 1

Each round starts a run, lets one fault happen to it, and then goes on with it until it is finished: with --resume, or
from the copies that the fault has left. The run must have said what was wrong in one line and ended with a documented
exit code, or have gone on; and its final weights and metrics must be the bits of a run left alone. Needs the digits
only. Exit code 0 if every round ended so, 1 if not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kill_resume import differences

from ard_fast.data import load_dataset
from ard_fast.train import main as train
from ard_fast.training.trainer import Trainer

_SETTINGS = ["--method", "ard", "--epochs", "3", "--subset", "256", "--val-steps", "2", "--steps", "3",
             "--test-subset", "50", "--save-every-seconds", "0.05", "--threads", "1"]  # fmt: skip
_TEACHER = ["--method", "natural", "--student", "digits-teacher", *_SETTINGS[2:8], *_SETTINGS[10:12]]
_GONE_ON = frozenset((0,))
_DIVERGED = frozenset((1,))
_REFUSED = frozenset((2,))
_STOPPED = frozenset((0, 130))  # 0: it was through before the signal came
_KILLED = frozenset((0, -9))


@dataclass
class Round:
    """One run and what happens to it.

    Attributes:
        out: the run's folder.
        arguments: of the command.
        seconds: that a run left alone takes.
        chance: random numbers.
        log: where its output goes.
    """

    out: Path
    arguments: list[str]
    seconds: float
    chance: random.Random
    log: Path

    def start(self, before: Callable[[], None] | None = None, *more: str) -> multiprocessing.Process:
        """The command in a process that is a copy of this one, after `before`; goes on where the folder has a run."""
        resume = (self.out / "config.yaml").exists()
        arguments = ["--resume", str(self.out)] if resume else [*self.arguments, *more, "--out", str(self.out)]
        process = multiprocessing.get_context("fork").Process(target=_child, args=(arguments, self.log, before))
        process.start()
        return process

    def moment(self) -> float:
        """Some seconds after a start, within the run."""
        return self.chance.uniform(0.1, 0.9) * self.seconds

    def said(self) -> str:
        """What the last process wrote."""
        return self.log.read_text(errors="replace")


def _child(arguments: Sequence[str], log: Path, before: Callable[[], None] | None) -> None:
    number = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(number, 1)
    os.dup2(number, 2)
    torch.set_num_threads(1)
    if before is not None:
        before()
    code = train(list(arguments))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


# ---- the faults: each returns the exit code, having done what undoes it ----------------------------------------------


def _signalled(run: Round, number: int) -> int:
    process = run.start()
    process.join(run.moment())
    os.kill(process.pid, number)
    process.join()
    return process.exitcode


def killed(run: Round) -> int:
    """kill -9 at any moment."""
    return _signalled(run, signal.SIGKILL)


def terminated(run: Round) -> int:
    """SIGTERM at any moment."""
    return _signalled(run, signal.SIGTERM)


def stopped_for_a_while(run: Round) -> int:
    """SIGSTOP, and SIGCONT a second later."""
    process = run.start()
    process.join(run.moment())
    os.kill(process.pid, signal.SIGSTOP)
    time.sleep(1.0)
    os.kill(process.pid, signal.SIGCONT)
    process.join()
    return process.exitcode


def disk_full(run: Round) -> int:
    """No file can grow beyond some size from the start on: ENOSPC's sibling EFBIG."""
    size = run.chance.choice((0, 100, 10_000, 1_000_000))

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    process = run.start(limit)
    process.join()
    return process.exitcode


def disk_full_once(run: Round) -> int:
    """One write of a checkpoint fails with ENOSPC."""
    at = run.chance.randint(1, 6)

    def fail() -> None:
        import ard_fast._files as files

        real, done = files._sync, 0

        def sync(path: Path) -> None:
            nonlocal done
            done += 1
            if done == at:
                raise OSError(28, "No space left on device")
            real(path)

        files._sync = sync

    process = run.start(fail)
    process.join()
    return process.exitcode


def _spoiled_batches(step: int, change: Callable[[Any], None]) -> Callable[[], None]:
    def patch() -> None:
        real, done = Trainer._steps, 0

        def steps(self: Trainer) -> Iterator[Any]:
            nonlocal done
            for parts in real(self):
                done += 1
                if done == step:
                    change(parts)
                yield parts

        Trainer._steps = steps

    return patch


def nan_batch(run: Round) -> int:
    """The images of one step are NaN, as broken memory would make them."""
    process = run.start(_spoiled_batches(run.chance.randint(1, 5), lambda parts: parts[0].x.fill_(float("nan"))))
    process.join()
    return process.exitcode


def data_worker_fails(run: Round) -> int:
    """The thread that reads batches ahead meets an error of the disk."""
    at = run.chance.randint(1, 4)

    def patch() -> None:
        from ard_fast.data import streamed

        real, done = streamed._Slot.fill, 0

        def fill(self: Any, *arguments: Any) -> None:
            nonlocal done
            done += 1
            if done == at:
                raise OSError(5, "Input/output error", "the images")
            real(self, *arguments)

        streamed._Slot.fill = fill

    process = run.start(patch, "--resident", "never")
    process.join()
    return process.exitcode


def clock_jumps(run: Round) -> int:
    """The clock goes back a day, on a year, and so on."""

    def patch() -> None:
        chance, real = random.Random(0), time.time
        time.time = lambda: real() + chance.choice((-86_400.0, 0.0, 3e7))

    process = run.start(patch)
    process.join()
    return process.exitcode


def _flip(path: Path, chance: random.Random, times: int = 1) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(times):
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(content))


def checkpoint_damaged(run: Round) -> int:
    """A bit of the checkpoint flips after a kill; its copy is put back when the run has refused it."""
    killed(run)
    state = run.out / "training_state.pt"
    if not state.exists() or (run.out / "summary.json").exists():
        return 2  # killed before the first checkpoint, or finished
    copy = state.read_bytes()
    _flip(state, run.chance)
    process = run.start()
    process.join()
    state.write_bytes(copy)
    return process.exitcode


def metrics_damaged(run: Round) -> int:
    """metrics.jsonl is overwritten after a kill; the checkpoint holds its lines."""
    killed(run)
    metrics = run.out / "metrics.jsonl"
    if not metrics.exists():
        return 0
    metrics.write_bytes(run.chance.randbytes(100))
    process = run.start()
    process.join()
    return process.exitcode


def cache_damaged(run: Round) -> int:
    """Bits of the teacher's logits on disk flip between two runs."""
    cache = run.out.with_name("cache")
    shutil.rmtree(cache, ignore_errors=True)
    first = Round(run.out.with_name("first"), run.arguments, run.seconds, run.chance, run.log)
    shutil.rmtree(first.out, ignore_errors=True)
    first.start(None, "--teacher-cache", str(cache)).join()
    for table in cache.rglob("*"):
        if table.is_file():
            with open(table, "r+b") as file:
                for _ in range(2000):
                    file.seek(4096 + run.chance.randrange(max(table.stat().st_size - 4096, 1)))
                    file.write(run.chance.randbytes(1))
    process = run.start(None, "--teacher-cache", str(cache))
    process.join()
    return process.exitcode


def two_at_once(run: Round) -> int:
    """A second process goes on with a folder in which the first is still training."""
    process = run.start()
    while not (run.out / "config.yaml").exists() and process.is_alive():
        time.sleep(0.01)
    second = Round(run.out, run.arguments, run.seconds, run.chance, run.log.with_name("second.log"))
    other = second.start()
    other.join()
    process.join()
    if process.exitcode or (other.exitcode and "another process is training" not in second.said()):
        return 99
    return process.exitcode


def folder_is_a_file(run: Round) -> int:
    """Where the folder should be is a file."""
    run.out.write_text("not a folder")
    process = run.start()
    process.join()
    run.out.unlink()
    return process.exitcode


@dataclass(frozen=True)
class Fault:
    """A fault, the exit codes it may lead to, and what must then be said."""

    happen: Callable[[Round], int]
    codes: frozenset[int]
    says: tuple[str, ...] = ()


FAULTS = {
    "kill -9": Fault(killed, _KILLED),
    "SIGTERM": Fault(terminated, _STOPPED | {-15}),  # -15: before the handler was there
    "SIGSTOP": Fault(stopped_for_a_while, _GONE_ON),
    "disk full": Fault(disk_full, _DIVERGED | _REFUSED, ("cannot write", "File too large")),
    "disk full once": Fault(disk_full_once, _DIVERGED | _REFUSED | _GONE_ON, ("No space left on device",)),
    "nan batch": Fault(nan_batch, _DIVERGED, ("loss became nan", "weights became not finite")),
    "data worker": Fault(data_worker_fails, _DIVERGED | _REFUSED, ("Input/output error",)),
    "clock jumps": Fault(clock_jumps, _GONE_ON),
    "checkpoint damaged": Fault(checkpoint_damaged, _REFUSED, ("is not a training state",)),
    "metrics damaged": Fault(metrics_damaged, _GONE_ON),
    "logit cache damaged": Fault(cache_damaged, _GONE_ON),
    "two runs, one folder": Fault(two_at_once, _GONE_ON),
    "folder is a file": Fault(folder_is_a_file, _REFUSED, ("error: ",)),
}


def one_round(name: str, run: Round, whole: Path) -> list[str]:
    """Let the fault happen and finish the run; what is wrong."""
    fault, complaints = FAULTS[name], []
    shutil.rmtree(run.out, ignore_errors=True)
    run.log.write_text("")
    code = fault.happen(run)
    said = run.said()
    if code not in fault.codes:
        complaints.append(f"exit code {code}: {said[-600:]}")
    if "Traceback" in said:
        complaints.append(f"a traceback: {said[-900:]}")
    if code in (1, 2) and fault.says and said and not any(text in said for text in fault.says):
        complaints.append(f"does not say {' or '.join(fault.says)}: {said[-600:]}")
    for _ in range(3):
        if (run.out / "summary.json").exists():
            break
        process = run.start()
        process.join()
        if process.exitcode:
            complaints.append(f"could not go on, exit code {process.exitcode}: {run.said()[-600:]}")
            return complaints
    # config.yaml tells where the cache was and whether images were streamed; nothing else may differ.
    different = [path for path in differences(whole, run.out) if path != "config.yaml"]
    return [*complaints, *([f"not as a run left alone: {', '.join(different)}"] if different else [])]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="rounds are started for so long, each fault once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="faults whose names contain this")
    args = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    os.environ["XDG_CACHE_HOME"] = str(root / "user-cache")
    load_dataset("digits")  # so that the processes below, which are copies of this one, need not import it
    chance = random.Random(args.seed)
    teacher = Round(root / "teacher", _TEACHER, 0.0, chance, root / "log")
    teacher.start().join()
    arguments = [*_SETTINGS, "--teacher", str(root / "teacher")]
    started = time.monotonic()
    whole = Round(root / "whole", arguments, 0.0, chance, root / "log")
    process = whole.start()
    process.join()
    if process.exitcode:
        print(f"the run that is left alone failed: {whole.said()}")
        return 1
    seconds = time.monotonic() - started
    print(f"a run left alone: {seconds:.1f} s; faults happen for {args.minutes:g} minutes", flush=True)
    names = [name for name in FAULTS if args.only in name]
    counts, bad = Counter(), 0
    began = time.monotonic()
    while time.monotonic() - began < 60.0 * args.minutes or len(counts) < len(names):
        name = names[counts.total() % len(names)]
        run = Round(root / "run", arguments, seconds, chance, root / "log")
        complaints = one_round(name, run, root / "whole")
        counts[name] += 1
        bad += bool(complaints)
        print(f"{counts.total():>4}  {name:<22}{'; '.join(complaints) or 'as it should be'}", flush=True)
    print(f"{counts.total()} rounds, {len(counts)} kinds of faults, {bad} wrong")
    shutil.rmtree(root)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
