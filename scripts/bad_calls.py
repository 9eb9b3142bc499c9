#!/usr/bin/env python3
"""Call every public function wrongly, many times; each call must be refused clearly or be legal.

python scripts/bad_calls.py --calls 1000 --seed 0
scripts/variant.sh sanitized python scripts/bad_calls.py        # under AddressSanitizer and UBSan
python scripts/bad_calls.py --only functional.crop_flip --number 17   # one call again

Each call is a valid one with one or two arguments changed: types, dtypes, shapes, devices, strides, shared memory, odd
numbers, missing and unknown arguments. An answer is clear if the exception is a TypeError, ValueError or RuntimeError
that names an argument that was changed, and nothing has been written. A function's calls run in a process of their
own, so that a crash is reported with the call that crashed. Exit code 0 if all answers are clear, 1 if not.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 60  # seconds that one call may take


def run_calls(target: Any, calls: int, seed: int, at: Any, results: Connection) -> None:
    """In a process of its own: all calls of a function, with the number of the present one in `at`."""
    from abuse.bad_call import Tally, try_calls

    faulthandler.enable()
    tally = Tally({}, [])
    for number in range(calls):
        at.value = number
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        one = try_calls(target, [number], seed)
        for outcome, count in one.counts.items():
            tally.counts[outcome] = tally.counts.get(outcome, 0) + count
        tally.unclear += one.unclear
    faulthandler.cancel_dump_traceback_later()
    results.send((dict(tally.counts), tally.unclear))
    os._exit(0)


def in_a_process(target: Any, calls: int, seed: int) -> tuple[dict[str, int], list[tuple[int, str, str]]]:
    """Counts of answers, and the calls that were not answered clearly; a crash is one of them."""
    from abuse.bad_call import one_call

    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    at = context.Value("q", -1)
    process = context.Process(target=run_calls, args=(target, calls, seed, at, send))
    process.start()
    send.close()
    try:
        counts, unclear = receive.recv()
    except EOFError:
        process.join()
        words = one_call(target, seed, at.value).words
        counts, unclear = {}, [(at.value, words, f"the process ended with exit code {process.exitcode}")]
    process.join()
    return counts, unclear


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--calls", type=int, default=1000, help="of each function")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="functions whose names contain this")
    parser.add_argument("--number", type=int, help="this call only, with its traceback")
    parser.add_argument("--show", type=int, default=5, help="unclear answers to print of each function")
    args = parser.parse_args()

    import torch
    from abuse.bad_call import one_call
    from abuse.targets import all_targets

    import ard_fast

    torch.set_num_threads(1)
    chosen = [target for target in all_targets() if args.only in target.name]
    if args.number is not None:
        for target in chosen:
            call = one_call(target, args.seed, args.number)
            print(f"{target.name}, {call.words}")
            print(target.call(**call.arguments))
        return 0
    print(f"ard_fast in {Path(ard_fast.__file__).parent}, torch {torch.__version__}, seed {args.seed}")
    print(f"{'function':<40}{'calls':>8}{'refused':>9}{'accepted':>10}{'unclear':>9}{'seconds':>9}")
    total = [0, 0, 0, 0]
    for target in chosen:
        started = time.perf_counter()
        counts, unclear = in_a_process(target, args.calls, args.seed)
        refused, accepted = counts.get("refused", 0), counts.get("accepted", 0)
        row = refused + accepted, refused, accepted, len(unclear)
        total = [a + b for a, b in zip(total, row, strict=True)]
        seconds = time.perf_counter() - started
        print(f"{target.name:<40}{row[0]:>8}{row[1]:>9}{row[2]:>10}{row[3]:>9}{seconds:>9.1f}", flush=True)
        for number, words, complaint in unclear[: args.show]:
            print(f"    call {number}: {words}\n        {complaint}", flush=True)
    print(f"{'all':<40}{total[0]:>8}{total[1]:>9}{total[2]:>10}{total[3]:>9}")
    return 1 if total[3] else 0


if __name__ == "__main__":
    sys.exit(main())
