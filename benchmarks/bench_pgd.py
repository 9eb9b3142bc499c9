"""The fused L-infinity PGD step against the ways it is written today.

    python benchmarks/bench_pgd.py [--device cpu|cuda] [--json FILE] [--quick]

Variants, all from x_adv, grad, x (B*C*H*W elements, images in [0, 1], fp32; grad fp32 or bf16) to the next x_adv:

    ard              the published ARD script's expression: 8 image-sized operations, 19 tensor passes
    torchattacks     torchattacks.PGD's expression: 7 image-sized operations, 17 passes
    inplace          the leanest eager form: bounds precomputed once per attack (not timed), in place, 9 passes
    compile          torch.compile of the ARD expression: one kernel, and a new tensor for the result
    compile_inplace  the same written over x_adv: one kernel, 3 reads and 1 write, the least there is
    cupy             CuPy's fused elementwise kernel, hand-written (CUDA with CuPy only)
    fused            ard_fast.functional.pgd_linf_step_ with check_bounds=False, as attacks call it
    copy             a copy of as many bytes as the step must move: the ceiling

On CUDA every variant is also timed as a captured graph (`...+graph`), which leaves out launch gaps.

Least traffic: read x_adv, x and grad, write x_adv, so 16 bytes an element with fp32 gradients and 14 with bf16. `GB/s`
is that least traffic over the variant's time, so it ranks the variants; a variant that moves more bytes is not excused.

Before anything is timed the variants' results are compared with the ARD expression on the fp32 gradient, and a
difference ends the run with exit status 1. All must be bit-equal, except: torchattacks rounds x_adv - x and adds it
back, which may change 1.2e-7; and with bf16 gradients ard and torchattacks multiply step_size by a bf16 sign, so they
take a step rounded to bf16 (2/255 becomes 1/128): they are timed as published and compared within that rounding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from _run import DTYPES, Problem, Row, Sets, compiled, copies, parse_args, require_close, run, run_problem
from torch import Tensor

EPS = 8 / 255
STEP = 2 / 255

CASES: dict[str, tuple[int, ...]] = {
    "cifar-1": (1, 3, 32, 32),
    "cifar-128": (128, 3, 32, 32),
    "cifar-1024": (1024, 3, 32, 32),
    "imagenet-32": (32, 3, 224, 224),
    "imagenet-128": (128, 3, 224, 224),
}
VARIANTS = ("ard", "torchattacks", "inplace", "compile", "compile_inplace", "cupy", "fused")


def ard_step(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """One step as written in the ARD script (goldblum/AdversariallyRobustDistillation, main.py, AttackPGD)."""
    out = x_adv.detach() + STEP * torch.sign(grad.detach())
    out = torch.min(torch.max(out, x - EPS), x + EPS)
    return torch.clamp(out, 0.0, 1.0)


def torchattacks_step(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """One step as written in torchattacks (Harry24k/adversarial-attacks-pytorch, torchattacks/attacks/pgd.py)."""
    out = x_adv.detach() + STEP * grad.sign()
    delta = torch.clamp(out - x, min=-EPS, max=EPS)
    return torch.clamp(x + delta, min=0, max=1).detach()


def compiled_step(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """The ARD expression for the compiler; the sign is widened first, so a bf16 gradient does not round the step."""
    out = x_adv + STEP * torch.sign(grad.to(x_adv.dtype))
    return torch.clamp(torch.min(torch.max(out, x - EPS), x + EPS), 0.0, 1.0)


def compiled_step_(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """`compiled_step` with its result written over x_adv."""
    return x_adv.copy_(compiled_step(x_adv, grad, x))


def cupy_step(grads: list[Tensor], xs: list[Tensor], x_advs: list[Tensor]) -> Callable[[int], object]:
    """Returns the CuPy step over the buffers: one elementwise kernel on torch's current stream.

    Raises:
        ImportError: If CuPy is not installed.
    """
    import cupy

    bf16 = grads[0].dtype == torch.bfloat16  # read as 16 bits and widened in the kernel
    widened = "__uint_as_float((unsigned int)(unsigned short)bits << 16)" if bf16 else "bits"
    kernel = cupy.ElementwiseKernel(
        f"{'int16' if bf16 else 'float32'} bits, float32 x",
        "float32 a",
        f"""float g = {widened};
        float v = a + {STEP:.9e}f * (float)((g > 0.f) - (g < 0.f));
        a = fminf(fmaxf(fminf(fmaxf(v, x - {EPS:.9e}f), x + {EPS:.9e}f), 0.f), 1.f);""",
        "pgd_linf_step_cupy",
    )
    arrays = [
        tuple(map(cupy.asarray, (g.view(torch.int16).flatten() if bf16 else g.flatten(), x.flatten(), a.flatten())))
        for g, x, a in zip(grads, xs, x_advs, strict=True)
    ]
    current = [None]

    def call(i: int) -> Tensor:
        stream = torch.cuda.current_stream().cuda_stream
        if stream != current[0]:  # follow torch, also onto the stream of a graph capture
            cupy.cuda.ExternalStream(stream).use()
            current[0] = stream
        kernel(*arrays[i])
        return x_advs[i]

    return call


def problem(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, sets: Sets) -> Problem:
    """Returns the step at `shape` with gradients of `dtype`.

    x is uniform in [0, 1] (with exact 0 and 1 among it), x_adv inside the eps-ball, grad about 1e-3 with exact zeros.
    """
    from ard_fast import functional as F

    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(shape, generator=generator).mul_(1.02).sub_(0.01).clamp_(0, 1)
    x_adv0 = (x0 + torch.empty_like(x0).uniform_(-EPS, EPS, generator=generator)).clamp_(0, 1)
    grad0 = torch.randn(shape, generator=generator).mul_(1e-3)
    grad0.flatten()[::97] = 0
    x0, x_adv0, grad0 = x0.to(device), x_adv0.to(device), grad0.to(device, dtype)
    n = sets(x0.numel() * (8 + dtype.itemsize))
    x, x_adv, grad = copies(x0, n), copies(x_adv0, n), copies(grad0, n)
    low, high = copies((x0 - EPS).clamp_(min=0), n), copies((x0 + EPS).clamp_(max=1), n)

    def reset(n: int) -> None:  # in-place variants overwrite x_adv, and the signs the gradient
        for i in range(n):
            x_adv[i].copy_(x_adv0)
            grad[i].copy_(grad0)

    def over(step: Callable[..., Any]) -> Callable[[int], object]:
        return lambda i: step(x_adv[i], grad[i], x[i])

    fused = partial(F.pgd_linf_step_, step_size=STEP, eps=EPS, check_bounds=False)
    rounding = 0.0 if dtype == torch.float32 else abs(float(torch.tensor(STEP, dtype=dtype)) - STEP) + 6e-8
    tolerances = {"ard": rounding, "torchattacks": 1.2e-7 + rounding}

    def check(name: str, out: Tensor) -> Row:
        return require_close(name, "x_adv", out, ard_step(x_adv0, grad0.float(), x0), tolerances.get(name, 0.0))

    return Problem(
        shape=shape,
        bytes_min=x0.numel() * (12 + dtype.itemsize),
        traffic="x_adv, grad, x read, x_adv written",
        baseline="ard",
        makers={
            "ard": lambda: over(ard_step),
            "torchattacks": lambda: over(torchattacks_step),
            "inplace": lambda: lambda i: x_adv[i].add_(grad[i].sign_(), alpha=STEP).clamp_(low[i], high[i]),
            "compile": lambda: over(compiled(compiled_step)),
            "compile_inplace": lambda: over(compiled(compiled_step_)),
            "cupy": lambda: cupy_step(grad, x, x_adv),
            "fused": lambda: over(fused),
        },
        check=check,
        reset=reset,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""
    args = parse_args(
        str(__doc__),
        argv,
        cases=CASES,
        quick_cases=("cifar-1", "cifar-128"),
        dtypes=tuple(DTYPES),
        variants=VARIANTS,
        left_out={"cpu": ("cupy",)},
    )

    def run_case(case: str, dtype: str, env: Row) -> list[Row]:
        make = partial(problem, CASES[case], DTYPES[dtype], torch.device(args.device))
        return run_problem(make, args, {**env, "benchmark": "pgd_linf_step", "case": case, "dtype": dtype})

    return run("bench_pgd", args, run_case)


if __name__ == "__main__":
    sys.exit(main())
