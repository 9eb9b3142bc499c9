"""Runs each fused op a few times at benchmark sizes, for a profiler to watch.

    ncu --csv --metrics ... --nvtx --profile-from-start off python benchmarks/profile_kernels.py --device cuda
    ncu ... --cache-control none python benchmarks/profile_kernels.py --cases 'ceiling-*,copy-*'
    perf record -g python benchmarks/profile_kernels.py --device cpu --cases step-fp32-cifar-1024 --repeat 200

On CUDA only the last run of each case lies between cudaProfilerStart and cudaProfilerStop, inside an NVTX range of the
case's name: `ncu_summary.py` makes a table of the result, and `ceilings.py --ncu` verdicts from ceiling-* and copy-*.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from itertools import cycle

import _ceiling_cases
import bench_augment
import bench_kd_loss
import bench_pgd
import bench_steps
import torch

STEP_CASES = ("cifar-1", "cifar-128", "cifar-1024", "imagenet-128")
LOSS_CASES = ("c10-128", "c100-128", "c1000-4096", "c32003-128")


def step_case(case: str, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """Returns a call of the fused step at a case of bench_pgd."""
    buffers = bench_pgd.make_buffers(bench_pgd.CASES[case], dtype, device, n_sets=1)
    variant = bench_pgd.make_variant("fused", buffers)
    return lambda: variant.call(0)


def loss_case(case: str, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    """Returns a call of the fused loss, forward and backward, at a case of bench_kd_loss."""
    student = (5 * torch.randn(bench_kd_loss.CASES[case])).to(device, dtype).requires_grad_()
    teacher = (5 * torch.randn(bench_kd_loss.CASES[case])).to(device, dtype)
    variant = bench_kd_loss.make_variant("fused", [student], [teacher], temperature=30.0)
    return lambda: variant.call(0)


def start_case(case: str, device: torch.device) -> Callable[[], object]:
    """Returns a call of the random start at a case of bench_pgd."""
    from ard_fast import functional as F

    x = torch.rand(bench_pgd.CASES[case], device=device)
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    return lambda: F.random_start(x, eps=bench_pgd.EPS, seed=seed)


def attack_case(case: str, device: torch.device) -> Callable[[], object]:
    """Returns a call of the fused operator of a case of bench_steps, fp32."""
    operator, size = bench_steps.CASES[case]
    variant = bench_steps.make_problem(operator, size, "fp32", device, n_sets=1).make("fused")
    return lambda: variant.call(0)


def augment_case(case: str, device: torch.device) -> Callable[[], object]:
    """Returns a call of the fused augmentation at a case of bench_augment."""
    size, channels_last = bench_augment.CASES[case]
    variant = bench_augment.make_problem(size, channels_last, device, n_sets=1).make("fused")
    return lambda: variant.call(0)


def ceiling_case(case: str, device: torch.device) -> Callable[[], object]:
    """Returns a call of a case of ceilings; each run takes another of its buffer sets."""
    call = _ceiling_cases.make(case, device)
    sets = cycle(range(call.sets))
    return lambda: call.variant.call(next(sets))


def all_cases(device: torch.device) -> dict[str, Callable[[], Callable[[], object]]]:
    """Returns a maker for each case by name; making one allocates its buffers."""
    cases: dict[str, Callable[[], Callable[[], object]]] = {}
    for case in STEP_CASES:
        for name, dtype in bench_pgd.DTYPES.items():
            cases[f"step-{name}-{case}"] = lambda case=case, dtype=dtype: step_case(case, dtype, device)
        cases[f"start-{case}"] = lambda case=case: start_case(case, device)
    for case in LOSS_CASES:
        for name, dtype in bench_kd_loss.DTYPES.items():
            cases[f"loss-{name}-{case}"] = lambda case=case, dtype=dtype: loss_case(case, dtype, device)
    for case in bench_steps.CASES:
        if not case.endswith("digits-1"):  # call overhead, no kernel to speak of
            cases[f"attack-{case}"] = lambda case=case: attack_case(case, device)
    for case in bench_augment.CASES:
        cases[f"augment-{case}"] = lambda case=case: augment_case(case, device)
    for case in _ceiling_cases.MAKERS:
        cases[f"ceiling-{case}"] = lambda case=case: ceiling_case(case, device)
        cases[f"copy-{case}"] = lambda case=case: _ceiling_cases.kernel_copy(case, device)
    return cases


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the chosen cases; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--cases", metavar="A,B*", help="names or patterns; default: all; --list prints them")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each case, the last one profiled (default 3)")
    parser.add_argument("--list", action="store_true", help="print the cases")
    args = parser.parse_args(argv)
    cases = all_cases(torch.device(args.device))
    chosen: list[str] = []
    for pattern in (args.cases or "*").split(","):
        matching = [name for name in cases if fnmatchcase(name, pattern)]
        if not matching:
            parser.error(f"--cases: expected any of {', '.join(cases)}, got {pattern!r}")
        chosen += matching
    if args.list:
        print("\n".join(cases))
        return 0
    for name in chosen:
        run = cases[name]()
        with torch.autograd.set_multithreading_enabled(False):  # NVTX ranges belong to a thread: so must the backward
            for _ in range(args.repeat - 1):
                run()
            if args.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
                torch.cuda.nvtx.range_push(name)
            run()
            if args.device == "cuda":
                torch.cuda.synchronize()
                torch.cuda.nvtx.range_pop()
                torch.cuda.profiler.stop()
        print(name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
