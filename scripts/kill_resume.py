#!/usr/bin/env python3
"""Kill a training run with SIGKILL at random moments, resume it each time, and compare it with a run left alone.

python scripts/kill_resume.py --method ard --kills 20
python scripts/kill_resume.py --method fair-ard -- --averaging ema --epochs 4

What follows `--` goes to `python -m ard_fast.train`. Needs the digits only, no GPU. Exit code 0 if the final weights of
student and teachers and all metrics (but times and the share of cached soft labels) are the same bits, 1 if not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from ard_fast.data import load_dataset
from ard_fast.methods import find_method
from ard_fast.train import main as train
from ard_fast.training.checkpoint import load_state
from ard_fast.training.run_folder import RunFolder

_ASIDE = ("images_per_s", "elapsed_s", "teacher_cache_hits", "clean_teacher_cache_hits")  # of the process, no results
_LONGEST = 0.6  # of the whole run's time, start of the process included
_SETTINGS = ["--epochs", "6", "--teacher-epochs", "4", "--subset", "512", "--val-steps", "4",
             "--test-subset", "100", "--save-every-seconds", "0.1", "--threads", "1"]  # fmt: skip


def _child(arguments: Sequence[str]) -> None:
    """A training process, without its printing."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os._exit(train(list(arguments)))


def _start(arguments: Sequence[str]) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_child, args=(arguments,))
    process.start()
    return process


def run_and_kill(out: Path, arguments: Sequence[str], moments: Iterator[float]) -> int:
    """Train in `out` to the end, killed at each of the moments (seconds after a start) that come before it.

    Prints a line for each kill and returns how many there were.
    """
    kills = 0
    while True:
        process = _start(["--resume", str(out)] if (out / "config.yaml").exists() else [*arguments, "--out", str(out)])
        moment = next(moments, None)
        process.join(moment)
        if process.exitcode is not None:
            if process.exitcode:
                raise RuntimeError(f"the run in {out} failed with exit code {process.exitcode}")
            return kills
        process.kill()
        process.join()
        kills += 1
        print(f"{kills:>4}  {moment:>8.3f}  {_where(out)}", flush=True)


def _where(out: Path) -> str:
    """What the files of a killed run say."""
    places = []
    for path in sorted(out.glob("**/config.yaml")):
        name = path.parent.name if path.parent != out else "student"
        if (path.parent / "summary.json").exists():
            places.append(f"{name} finished")
        elif (path.parent / "training_state.pt").exists():
            state = load_state(path.parent / "training_state.pt")
            places.append(f"{name} saved at epoch {state.epoch + 1}, step {state.step}")
        else:
            places.append(f"{name} started")
        left = [part.name for part in path.parent.glob(".*.part")]
        places += [f"inside the writing of {', '.join(left)}"] if left else []
    return "; ".join(places) or "nothing written"


def differences(whole: Path, killed: Path) -> list[str]:
    """The files of two run folders that are not the same, times left aside."""
    found = []
    for path in sorted(whole.glob("**/*")):
        other = killed / path.relative_to(whole)
        if path.suffix == ".safetensors":
            same = other.exists() and _same_tensors(load_file(path), load_file(other))
        elif path.name == "metrics.jsonl":
            same = _rows(path.parent) == _rows(other.parent)
        else:
            same = path.is_dir() or other.exists()
        if not same:
            found.append(str(path.relative_to(whole)))
    return found


def _same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _rows(folder: Path) -> list[dict[str, object]]:
    return [{key: row[key] for key in row if key not in _ASIDE} for row in RunFolder(folder).metrics()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; 0 if nothing differs."""
    argv = list(sys.argv[1:] if argv is None else argv)
    extra = argv[argv.index("--") + 1 :] if "--" in argv else []
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", default="ard")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, help="keep the run folders here")
    options = parser.parse_args(argv[: argv.index("--")] if "--" in argv else argv)
    root = options.out or Path(tempfile.mkdtemp(prefix="kill-resume-"))
    steps = ["--steps", "4"] if "steps" in find_method(options.method).defaults else []
    arguments = ["--method", options.method, *_SETTINGS, *steps, *extra]
    load_dataset("digits")  # so that the processes below, which are copies of this one, need not import it
    started = time.monotonic()
    run_and_kill(root / "whole", arguments, iter([]))
    seconds = time.monotonic() - started
    chance = random.Random(options.seed)
    print(f"{options.method}: left alone {seconds:.1f} s", flush=True)
    total, runs, found = 0, 0, []
    while total < options.kills:  # a run that is through before its kills are used up is followed by another one
        runs += 1
        print("kill   after s  the files then", flush=True)
        moments = (chance.uniform(0.0, _LONGEST * seconds) for _ in range(options.kills - total))
        kills = run_and_kill(root / f"killed{runs}", arguments, moments)
        different = differences(root / "whole", root / f"killed{runs}")
        print(f"finished after {kills} kills: {', '.join(different) or 'nothing'} differs", flush=True)
        total, found = total + kills, found + different
    verdict = "FAILED" if found else "every run ended in the same bits"
    print(f"{options.method}: {total} kills in {runs} runs; {verdict}")
    if options.out is None:
        shutil.rmtree(root)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
