"""The package's other operators alone, against the ways they are done today in eager mode and by torch.compile.

    python benchmarks/bench_ops.py [--device cpu|cuda] [--json FILE] [--quick] [--cases A,B] [--dtypes fp32,bf16]

Cases are OPERATOR-SIZE; what is compared stands at the top of the module that has them:

    ce, margin, dlr, kl          the gradient of the attack's loss for the logits (`_ops_logits.py`)
    l2, mifgsm, select, start    the L2 and the momentum step, the choice of the better image, the random start
                                 (`_ops_steps.py`)
    apgd-linf, apgd-l2           a step of Auto-PGD (`_ops_apgd.py`)
    norm, add, backward, fold,   affine_relu and its gradient, folding of a network, crop and flip of a batch; with
    augment                      `-last` in channels_last (`_ops_layers.py`)

`--dtypes` is that of logits, gradients, activations or folded weights; images are fp32. `GB/s` is the operation's least
traffic over the time, and `% of copy` its ratio to a copy of as many bytes in the same rounds. Before anything is timed
every variant's result is checked against the same formula, in float64 where results are rounded; a difference ends the
run with exit status 1. On CUDA every variant that does not wait for the device is also timed as a captured graph
(`...+graph`). bench_pgd.py has the L-infinity step, bench_kd_loss.py the losses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import _ops_apgd as apgd
import _ops_layers as layers
import _ops_logits as logits
import _ops_steps as steps
import torch
from _run import DTYPES, Problem, Row, parse_args, run, run_problem

BOTH, FP32 = ("fp32", "bf16"), ("fp32",)

# By case: what builds the problem, called with dtype, device and sets, and the dtypes that it has.
CASES: dict[str, tuple[Callable[..., Problem], tuple[str, ...]]] = {
    **{f"{o}-{s}": (partial(logits.gradient, o, s), BOTH) for o in logits.LOSSES for s in logits.SIZES},
    **{f"l2-{s}": (partial(steps.l2, s), BOTH) for s in steps.SIZES},
    **{f"mifgsm-{s}": (partial(steps.mifgsm, s), BOTH) for s in steps.SIZES},
    **{f"select-{s}": (partial(steps.select, s), FP32) for s in steps.SIZES},
    **{f"start-{s}": (partial(steps.start, s), FP32) for s in steps.SIZES},
    **{f"apgd-{o}-{s}": (partial(apgd.apgd, o, s), BOTH) for o in ("linf", "l2") for s in steps.SIZES},
    **{
        f"{o}-{s}": (partial(layers.affine, o, s), BOTH)
        for o in ("norm", "add", "backward")
        for s in layers.AFFINE_SHAPES
    },
    **{
        f"fold-{s}{'-last' * last}": (partial(layers.fold, s, last), BOTH)
        for s in layers.NETWORKS
        for last in (False, True)
    },
    **{
        f"augment-{s}{'-last' * last}": (partial(layers.augment, s, last), FP32)
        for s in layers.AUGMENT_SIZES
        for last in (False, True)
    },
}
LARGE = {f"{o}-imagenet-128" for o in ("l2", "mifgsm", "select", "start", "apgd-linf", "apgd-l2")}
"""Run only when they are asked for: gigabytes on a CPU."""
QUICK_CASES = (
    "ce-c10-128",
    "dlr-c10-128",
    "l2-cifar-128",
    "mifgsm-cifar-128",
    "select-cifar-128",
    "start-cifar-128",
    "apgd-linf-cifar-128",
    "norm-resnet18-512",
    "add-resnet18-512",
    "backward-resnet18-512",
    "fold-mobilenetv2",
    "augment-cifar-128",
)
VARIANTS = (
    "eager",
    "closed",
    "torchattacks",
    "autoattack",
    "mask",
    "torch",
    "layers",
    "foreach",
    "indexing",
    "masks",
    "inplace",
    "compile",
    "compile_closed",
    "fused",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""
    args = parse_args(
        str(__doc__),
        argv,
        cases=CASES,
        quick_cases=QUICK_CASES,
        default_cases=[case for case in CASES if case not in LARGE],
        dtypes=tuple(DTYPES),
        default_dtypes=FP32,
        variants=VARIANTS,
    )

    def run_case(case: str, dtype: str, env: Row) -> list[Row]:
        make, dtypes = CASES[case]
        if dtype not in dtypes:
            return []
        make = partial(make, DTYPES[dtype], torch.device(args.device))
        return run_problem(make, args, {**env, "benchmark": "ops", "case": case, "dtype": dtype})

    return run("bench_ops", args, run_case)


if __name__ == "__main__":
    sys.exit(main())
