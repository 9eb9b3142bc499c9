"""The fused L-infinity PGD step against the ways it is written today.

    python benchmarks/bench_pgd.py [--device cpu|cuda] [--json FILE] [--quick]

Variants, all from x_adv, grad, x (B*C*H*W elements, images in [0, 1], fp32; grad fp32 or bf16) to the next x_adv:

    ard              the published ARD script's expression: 8 image-sized operations
    torchattacks     torchattacks.PGD's expression: 7 image-sized operations
    lean             the leanest eager form: bounds precomputed once per attack (not timed), in place, 3 operations
    compile          torch.compile of the ARD expression: one kernel, and a new tensor for the result
    compile_inplace  the same written over x_adv: one kernel, 3 reads and 1 write, the least there is
    compile_lean     torch.compile of `lean`: one kernel, 4 reads and 1 write
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

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from _cli import Row, WrongResult, build_variants, parse_args, run
from _timing import (
    GRAPH_SUFFIX,
    Variant,
    copy_variant,
    format_table,
    make_clock,
    measure,
    number,
    rotation_sets,
    timing_rows,
    unavailable_row,
)

EPS = 8 / 255
STEP = 2 / 255

CASES: dict[str, tuple[int, ...]] = {
    "cifar-1": (1, 3, 32, 32),
    "cifar-128": (128, 3, 32, 32),
    "cifar-1024": (1024, 3, 32, 32),
    "imagenet-32": (32, 3, 224, 224),
    "imagenet-128": (128, 3, 224, 224),
}
QUICK_CASES = ("cifar-1", "cifar-128")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
VARIANTS = ("ard", "torchattacks", "lean", "compile", "compile_inplace", "compile_lean", "cupy", "fused")

# What each variant's own operations read and write, in tensor passes (one pass = one element read or written).
PASSES = {
    "ard": 19,
    "torchattacks": 17,
    "lean": 9,
    "compile": 4,
    "compile_inplace": 4,
    "compile_lean": 5,
    "cupy": 4,
    "fused": 4,
}

TORCHATTACKS_TOLERANCE = 1.2e-7


# ---------------------------------------------------------------------------------------------------------------------
# The expressions
# ---------------------------------------------------------------------------------------------------------------------


def ard_step(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One step as written in the ARD script (goldblum/AdversariallyRobustDistillation, main.py, AttackPGD)."""
    out = x_adv.detach() + STEP * torch.sign(grad.detach())
    out = torch.min(torch.max(out, x - EPS), x + EPS)
    return torch.clamp(out, 0.0, 1.0)


def torchattacks_step(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """One step as written in torchattacks (Harry24k/adversarial-attacks-pytorch, torchattacks/attacks/pgd.py)."""
    out = x_adv.detach() + STEP * grad.sign()
    delta = torch.clamp(out - x, min=-EPS, max=EPS)
    return torch.clamp(x + delta, min=0, max=1).detach()


def lean_step_(x_adv: torch.Tensor, grad: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The leanest eager step: adv-lib's precomputed bounds and `sign_`, with its add and mul as one `add_`."""
    return x_adv.add_(grad.sign_(), alpha=STEP).clamp_(low, high)


def compiled_step(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The ARD expression for the compiler; the sign is widened first, so a bf16 gradient does not round the step."""
    out = x_adv + STEP * torch.sign(grad.to(x_adv.dtype))
    return torch.clamp(torch.min(torch.max(out, x - EPS), x + EPS), 0.0, 1.0)


def compiled_step_(x_adv: torch.Tensor, grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """`compiled_step` with its result written over x_adv."""
    return x_adv.copy_(compiled_step(x_adv, grad, x))


def compiled_lean_step_(x_adv: torch.Tensor, grad: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """`lean_step_` for the compiler: grad is not overwritten, which saves the compiled kernel a write."""
    return x_adv.add_(torch.sign(grad.to(x_adv.dtype)), alpha=STEP).clamp_(low, high)


CUPY_BODY = """
float g = {load};
float v = a + STEP * (float)((g > 0.f) - (g < 0.f));
v = fminf(fmaxf(v, x - EPS), x + EPS);
a = fminf(fmaxf(v, 0.f), 1.f);
"""


def make_cupy_step(buffers: Buffers) -> Callable[[int], object]:
    """Returns the CuPy step over `buffers`: one elementwise kernel on torch's current stream.

    Raises:
        ImportError: If CuPy is not installed.
    """
    import cupy

    bf16 = buffers.dtype == torch.bfloat16  # read as 16 bits and widened in the kernel
    body = CUPY_BODY.replace(
        "{load}", "__uint_as_float((unsigned int)(unsigned short)gbits << 16)" if bf16 else "gbits"
    )
    kernel = cupy.ElementwiseKernel(
        f"{'int16' if bf16 else 'float32'} gbits, float32 x",
        "float32 a",
        body,
        "pgd_linf_step_cupy",
        preamble=f"#define STEP {STEP:.9e}f\n#define EPS {EPS:.9e}f\n",
    )
    flat = [
        (
            cupy.asarray(g.view(torch.int16).flatten() if bf16 else g.flatten()),
            cupy.asarray(x.flatten()),
            cupy.asarray(a.flatten()),
        )
        for g, x, a in zip(buffers.grad, buffers.x, buffers.x_adv, strict=True)
    ]
    current = [None]

    def call(i: int) -> object:
        stream = torch.cuda.current_stream().cuda_stream
        if stream != current[0]:  # follow torch, also onto the stream of a graph capture
            cupy.cuda.ExternalStream(stream).use()
            current[0] = stream
        return kernel(*flat[i])

    return call


# ---------------------------------------------------------------------------------------------------------------------
# Buffers and variants
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Buffers:
    """Rotated copies of one problem; x_adv and grad are overwritten by the in-place variants, x never."""

    x: list[torch.Tensor]
    x_adv: list[torch.Tensor]
    grad: list[torch.Tensor]
    low: list[torch.Tensor]
    high: list[torch.Tensor]
    x_adv_start: torch.Tensor
    grad_start: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the gradient."""
        return self.grad_start.dtype

    def reset(self, n: int) -> None:
        """Restores x_adv and grad of sets 0 to n-1."""
        for i in range(n):
            self.x_adv[i].copy_(self.x_adv_start)
            self.grad[i].copy_(self.grad_start)


def make_buffers(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, n_sets: int) -> Buffers:
    """Returns `n_sets` separately allocated copies of a random problem.

    x is uniform in [0, 1] (with exact 0 and 1 among it), x_adv inside the eps-ball, grad about 1e-3 with exact zeros.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator).mul_(1.02).sub_(0.01).clamp_(0, 1)
    x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS, generator=generator)).clamp_(0, 1)
    grad = torch.randn(shape, generator=generator).mul_(1e-3)
    grad.flatten()[::97] = 0
    x, x_adv, grad = x.to(device), x_adv.to(device), grad.to(device, dtype)
    low, high = (x - EPS).clamp_(min=0), (x + EPS).clamp_(max=1)

    def copies(t: torch.Tensor) -> list[torch.Tensor]:
        return [t.clone() for _ in range(n_sets)]

    return Buffers(copies(x), copies(x_adv), copies(grad), copies(low), copies(high), x_adv, grad)


def make_variant(name: str, b: Buffers) -> Variant:
    """Returns the variant called `name` over the buffers.

    Raises:
        Exception: Whatever keeps the variant from existing here (no CuPy, no compiler).
    """
    from ard_fast import functional as F

    if name == "ard":
        call = lambda i: ard_step(b.x_adv[i], b.grad[i], b.x[i])  # noqa: E731
    elif name == "torchattacks":
        call = lambda i: torchattacks_step(b.x_adv[i], b.grad[i], b.x[i])  # noqa: E731
    elif name == "lean":
        call = lambda i: lean_step_(b.x_adv[i], b.grad[i], b.low[i], b.high[i])  # noqa: E731
    elif name in ("compile", "compile_inplace"):
        written = compiled_step if name == "compile" else compiled_step_
        compiled = torch.compile(written, fullgraph=True, dynamic=False)
        call = lambda i: compiled(b.x_adv[i], b.grad[i], b.x[i])  # noqa: E731
    elif name == "compile_lean":
        compiled = torch.compile(compiled_lean_step_, fullgraph=True, dynamic=False)
        call = lambda i: compiled(b.x_adv[i], b.grad[i], b.low[i], b.high[i])  # noqa: E731
    elif name == "cupy":
        call = make_cupy_step(b)
    elif name == "fused":
        call = lambda i: F.pgd_linf_step_(  # noqa: E731
            b.x_adv[i], b.grad[i], b.x[i], step_size=STEP, eps=EPS, check_bounds=False
        )
    else:
        raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {name!r}")
    return Variant(name, call, b.reset)


def check_variant(variant: Variant, b: Buffers) -> Row:
    """Compares one step of `variant` with the ARD expression in fp32; returns the row fields saying what was checked.

    Raises:
        WrongResult: If the result differs by more than the variant's definition allows.
    """
    variant.reset(1)
    out = variant.call(0)
    # CuPy returns its own array; like every in-place variant it left the result in x_adv.
    out = out if isinstance(out, torch.Tensor) else b.x_adv[0]
    want = ard_step(b.x_adv_start, b.grad_start.float(), b.x[0])
    if out.shape != want.shape or not bool(torch.isfinite(out).all()):
        raise WrongResult(f"{variant.name}: not finite, or of shape {tuple(out.shape)} instead of {tuple(want.shape)}")
    rounded_step = b.dtype != torch.float32 and variant.name in ("ard", "torchattacks")
    tolerance = TORCHATTACKS_TOLERANCE if variant.name == "torchattacks" else 0.0
    if rounded_step:  # what torch makes of `STEP * bf16 tensor`, and of adding it
        tolerance += abs(float(torch.tensor(STEP, dtype=b.dtype)) - STEP) + 6e-8
    worst = float((out.double() - want.double()).abs().max())
    if worst > tolerance:
        raise WrongResult(f"{variant.name}: differs from the ARD expression by {worst:.3g}, allowed {tolerance:.3g}")
    if tolerance == 0:
        return {"checked": "bit-equal"}
    return {"checked": f"within {tolerance:.1e}" + (" (bf16 step)" if rounded_step else "")}


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def run_case(case: str, dtype_name: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """Checks and times all variants of one case and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant gives a wrong result.
    """
    shape, device, dtype = CASES[case], torch.device(args.device), DTYPES[dtype_name]
    numel = torch.Size(shape).numel()
    bytes_min = numel * (12 + dtype.itemsize)
    bytes_of_a_set = numel * (8 + dtype.itemsize)
    n_sets = 1 if args.warm else rotation_sets(bytes_of_a_set, int(env["cache_bytes"]))  # type: ignore[call-overload]
    buffers = make_buffers(shape, dtype, device, n_sets)
    common = {**env, "benchmark": "pgd_linf_step", "case": case, "shape": list(shape), "dtype": dtype_name}

    variants, checks, absent = build_variants(
        args.variants,
        lambda name: make_variant(name, buffers),
        lambda variant: check_variant(variant, buffers),
        n_sets=n_sets,
        device=device,
    )
    variants.append(copy_variant(bytes_min, n_sets, device))
    measured = measure(
        variants, make_clock(device), n_sets=n_sets, rounds=args.rounds, min_sample_s=args.min_sample_ms * 1e-3
    )
    rows = timing_rows(measured, n_sets=n_sets, bytes_min=bytes_min, baseline="ard", common=common)
    for row in rows:
        name = str(row["variant"])
        row["passes"] = PASSES.get(name.removesuffix(GRAPH_SUFFIX))
        row.update(checks.get(name, {}))
    rows += [unavailable_row(name, reason, common=common) for name, reason in absent.items()]
    print_case(rows, bytes_min)
    return rows


def print_case(rows: Sequence[Row], bytes_min: int) -> None:
    """Prints one case's table."""
    first = rows[0]
    shape = "x".join(map(str, first["shape"]))  # type: ignore[call-overload]
    print(
        f"\n{first['case']}  {shape}  {first['dtype']} gradient  "
        f"least traffic {bytes_min / 1e6:.3g} MB, {first['buffer_sets']} buffer sets"
    )
    table = [
        [
            str(r["variant"]),
            number(r["median_us"]),
            number(r["q3_us"] - r["q1_us"]),  # type: ignore[operator]
            number(r["min_us"]),
            number(r["gb_per_s"]),
            number(r["pct_of_copy"]),
            str(r["passes"] or "-"),
            number(r["speedup_vs_baseline"]),
            number(r["fused_speedup"]),
            str(r["checked"] or ""),
        ]
        for r in rows
        if r["status"] == "ok"
    ]
    headers = ["variant", "us", "IQR us", "min us", "GB/s", "% of copy", "passes", "x ard", "fused is x", "checked"]
    print(format_table(headers, table))
    for r in rows:
        if r["status"] != "ok":
            print(f"{r['variant']}: {r['status']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""
    args = parse_args(
        "The fused L-infinity PGD step against the ways it is written today.",
        argv,
        cases=tuple(CASES),
        quick_cases=QUICK_CASES,
        dtypes=tuple(DTYPES),
        variants=VARIANTS,
        left_out={"cpu": ("cupy",)},
    )
    return run("bench_pgd", args, lambda case, dtype, env: run_case(case, dtype, env, args))


if __name__ == "__main__":
    sys.exit(main())
