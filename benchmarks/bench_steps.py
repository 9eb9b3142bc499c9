"""The attacks' operators alone, against the ways they are done today in eager mode and by torch.compile.

    python benchmarks/bench_steps.py [--device cpu|cuda] [--json FILE] [--quick] [--dtypes fp32,bf16]

Cases are OPERATOR-SIZE: the gradient of the loss for the logits (ce, margin, dlr, kl; variants in `_steps_logits.py`),
the L2 step, the momentum step and the choice of the better image (l2, mifgsm, select; `_steps_images.py`), a step of
Auto-PGD (apgd-linf, apgd-l2; `_steps_apgd.py`). `--dtypes` is that of the logits or of the gradients; images are fp32.

`GB/s` is the operation's least traffic over the time, and `% of copy` its ratio to a copy of as many bytes in the same
rounds. Every variant's result is checked against the same formula in float64 before anything is timed, and a difference
ends the run with exit status 1. On CUDA every variant that does not wait for the device is also timed as a captured
graph (`...+graph`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import _steps_apgd
import _steps_images
import _steps_logits
import torch
from _cli import Row, parse_args, run
from _problem import Problem, run_problem
from _timing import rotation_sets

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

CASES: dict[str, tuple[str, str]] = {
    f"{operator}-{size}": (operator, size)
    for operators, sizes in (
        (_steps_logits.LOSSES, _steps_logits.SIZES),
        ((*_steps_images.OPERATORS, *_steps_apgd.NORMS), _steps_images.SIZES),
    )
    for operator in operators
    for size in sizes
}
LARGE = "imagenet-128"
"""A size that runs only when it is asked for: gigabytes on a CPU. ceilings.py takes it on a GPU."""
QUICK_CASES = (
    "ce-c10-128",
    "dlr-c10-128",
    "l2-cifar-128",
    "mifgsm-cifar-128",
    "select-cifar-128",
    "apgd-linf-cifar-128",
)
VARIANTS = tuple(
    dict.fromkeys((*_steps_logits.VARIANTS, "torchattacks", "mask", "autoattack", "lean", "compile", "fused"))
)


def set_bytes(operator: str, size: str, dtype: torch.dtype) -> int:
    """Returns the bytes of one buffer set of a case."""
    if operator in _steps_logits.LOSSES:
        return _steps_logits.set_bytes(operator, size, dtype)
    if operator in _steps_apgd.NORMS:
        return _steps_apgd.set_bytes(size, dtype)
    return _steps_images.set_bytes(operator, size, dtype)


def make_problem(operator: str, size: str, dtype_name: str, device: torch.device, n_sets: int) -> Problem:
    """Returns the problem of a case over `n_sets` buffer sets."""
    dtype = DTYPES[dtype_name]
    if operator in _steps_logits.LOSSES:
        return _steps_logits.problem(operator, size, dtype_name, dtype, device, n_sets)
    if operator in _steps_apgd.NORMS:
        return _steps_apgd.problem(operator, size, dtype, device, n_sets)
    return _steps_images.PROBLEMS[operator](size, dtype, device, n_sets)


def run_case(case: str, dtype_name: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """Checks and times all variants of one case and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant gives a wrong result.
    """
    operator, size = CASES[case]
    if operator == "select" and dtype_name != "fp32":
        return []  # no gradient in it
    device = torch.device(args.device)
    cache = int(env["cache_bytes"])  # type: ignore[call-overload]
    n_sets = 1 if args.warm else rotation_sets(set_bytes(operator, size, DTYPES[dtype_name]), cache)
    problem = make_problem(operator, size, dtype_name, device, n_sets)
    return run_problem(problem, "attack_steps", case, dtype_name, env, args, n_sets)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""
    args = parse_args(
        "The attacks' operators alone, against the ways they are done today.",
        argv,
        cases=tuple(CASES),
        quick_cases=QUICK_CASES,
        default_cases=tuple(case for case in CASES if not case.endswith(LARGE)),
        dtypes=tuple(DTYPES),
        default_dtypes=("fp32",),
        variants=VARIANTS,
    )
    return run("bench_steps", args, lambda case, dtype, env: run_case(case, dtype, env, args))


if __name__ == "__main__":
    sys.exit(main())
