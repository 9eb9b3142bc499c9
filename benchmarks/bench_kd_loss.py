"""The fused distillation loss against the ways it is written today: forward and backward, speed and accuracy.

    python benchmarks/bench_kd_loss.py [--device cpu|cuda] [--json FILE] [--quick]

Variants, all from student and teacher logits [B, C] to the loss and its gradient for the student:

    ard          the published ARD script: T*T*KLDivLoss()(log_softmax(s/T), softmax(t/T)), mean over B*C
    kl_div       the same loss as PyTorch's page advises: F.kl_div(..., "batchmean", log_target=True) * T*T
    kl_div_fp32  kl_div on logits.float() (bf16 logits only): what accuracy costs in eager
    compile      torch.compile of kl_div, forward and backward
    fused        ard_fast.functional.kl_distill_loss, batchmean
    copy         a copy of as many bytes as the loss must move: the ceiling

On CUDA every variant is also timed as a captured graph (`...+graph`).

The cases trades-*, mart-* and rslad-* are the losses of two students' rows with both gradients; their variants are
those of `_pair_losses.py`.

Least traffic: read both logits, write one gradient, 3 * B * C elements. Beside the time stand the relative errors of
the loss, |l - l64| / |l64|, and of the gradient, ||g - g64|| / ||g64||, against the same formula in float64 on the same
(rounded) logits. Ours must stay below its stated bounds and every fp32 baseline within 5 %, or nothing is timed; bf16
baselines compute in bf16 as written, and their errors are shown, not judged.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence

import _pair_losses
import torch
import torch.nn.functional as nnF
from _cli import Row, WrongResult, build_variants, parse_args, run
from _problem import run_problem
from _timing import (
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

CASES: dict[str, tuple[int, int]] = {
    "c10-128": (128, 10),
    "c100-128": (128, 100),
    "c1000-128": (128, 1000),
    "c1000-4096": (4096, 1000),
    "c32000-128": (128, 32000),
    "c32003-128": (128, 32003),
}
PAIR_CASES: dict[str, tuple[str, str]] = {
    f"{loss}-{size}": (loss, size) for loss in _pair_losses.LOSSES for size in _pair_losses.SIZES
}
QUICK_CASES = ("c10-128", "c1000-128", "trades-c10-128", "mart-c10-128", "rslad-c10-128")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
KD_VARIANTS = ("ard", "kl_div", "kl_div_fp32", "compile", "fused")
VARIANTS = tuple(dict.fromkeys((*KD_VARIANTS, *_pair_losses.VARIANTS)))

FUSED_BOUNDS = {"fp32": (2e-5, 1e-4), "bf16": (8e-3, 8e-3)}
"""Largest allowed relative error of the fused loss and gradient; in bf16 one rounding of each output."""
BASELINE_BOUND = 0.05

LossFn = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# The formulas
# ---------------------------------------------------------------------------------------------------------------------


def ard_loss(temperature: float) -> LossFn:
    """The distillation term as written in the ARD script (goldblum/AdversariallyRobustDistillation, main.py)."""
    kl_loss = torch.nn.KLDivLoss()
    t = temperature

    def loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return t * t * kl_loss(nnF.log_softmax(student / t, dim=1), nnF.softmax(teacher / t, dim=1))

    return loss


def kl_div_loss(temperature: float) -> LossFn:
    """The same divergence as torch's documentation advises: batchmean, both sides as log-probabilities."""
    t = temperature

    def loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        log_p, log_q = nnF.log_softmax(student / t, dim=1), nnF.log_softmax(teacher / t, dim=1)
        return nnF.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * (t * t)

    return loss


def loss_function(name: str, temperature: float, dtype: torch.dtype) -> LossFn:
    """Returns the loss of the variant called `name`.

    Raises:
        ValueError: If there is no such variant, or not for this dtype.
    """
    if name == "ard":
        return ard_loss(temperature)
    if name == "kl_div":
        return kl_div_loss(temperature)
    if name == "kl_div_fp32":
        if dtype == torch.float32:
            raise ValueError("for 16-bit logits only; with fp32 logits it is kl_div")
        upcast = kl_div_loss(temperature)
        return lambda student, teacher: upcast(student.float(), teacher.float())
    if name == "compile":
        return torch.compile(kl_div_loss(temperature), fullgraph=True, dynamic=False)
    if name == "fused":
        from ard_fast import functional as F

        return lambda student, teacher: F.kl_distill_loss(
            student, teacher, temperature=temperature, reduction="batchmean"
        )
    raise ValueError(f"variant: expected one of {', '.join(KD_VARIANTS)}, got {name!r}")


def make_variant(name: str, student: list[torch.Tensor], teacher: list[torch.Tensor], temperature: float) -> Variant:
    """Returns the variant called `name`; its call gives the loss and the gradient for the student's logits [B, C]."""
    loss_fn = loss_function(name, temperature, student[0].dtype)

    def call(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        loss = loss_fn(student[i], teacher[i])
        return loss, torch.autograd.grad(loss, student[i])[0]

    return Variant(name, call, lambda n: None)


def relative_errors(
    loss: torch.Tensor,
    grad: torch.Tensor,
    student: torch.Tensor,
    teacher: torch.Tensor,
    *,
    temperature: float,
    reduction: str,
) -> tuple[float, float]:
    """Returns the relative errors of loss and gradient against the formula in float64 on the same logits.

    Args:
        loss: Scalar to judge.
        grad: Gradient to judge, [B, C].
        student: Logits, [B, C].
        teacher: Logits, [B, C].
        temperature: Of both.
        reduction: "batchmean" (divides by B) or "mean" (divides by B*C).
    """
    s, t = student.detach().double() / temperature, teacher.detach().double() / temperature
    log_p, log_q = nnF.log_softmax(s, dim=1), nnF.log_softmax(t, dim=1)
    q = log_q.exp()
    divisor = s.shape[0] * (s.shape[1] if reduction == "mean" else 1)
    want_loss = temperature**2 * (q * (log_q - log_p)).sum() / divisor
    want_grad = temperature * (log_p.exp() - q) / divisor
    loss_error = float((loss.detach().double() - want_loss).abs() / want_loss.abs())
    grad_error = float((grad.double() - want_grad).norm() / want_grad.norm())
    return loss_error, grad_error


def check_variant(
    variant: Variant, student: torch.Tensor, teacher: torch.Tensor, *, temperature: float, dtype_name: str
) -> Row:
    """Returns the errors of `variant` on set 0 as row fields.

    Raises:
        WrongResult: If they are not finite or beyond the variant's bounds.
    """
    loss, grad = variant.call(0)  # type: ignore[misc]
    reduction = "mean" if variant.name == "ard" else "batchmean"
    loss_error, grad_error = relative_errors(loss, grad, student, teacher, temperature=temperature, reduction=reduction)
    bounds = None
    if variant.name == "fused":
        bounds = FUSED_BOUNDS[dtype_name]
    elif dtype_name == "fp32" or variant.name == "kl_div_fp32":
        bounds = (BASELINE_BOUND, BASELINE_BOUND)
    # written so that a NaN error fails
    if bounds and not (loss_error <= bounds[0] and grad_error <= bounds[1]):
        raise WrongResult(
            f"{variant.name}, {dtype_name}: relative error of loss {loss_error:.3g}, of gradient {grad_error:.3g}; "
            f"allowed {bounds[0]:.0e} and {bounds[1]:.0e}"
        )
    return {
        "loss_rel_error": loss_error,
        "grad_rel_error": grad_error,
        "checked": f"errors within {bounds[0]:.0e}, {bounds[1]:.0e}" if bounds else "errors shown only",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Running
# ---------------------------------------------------------------------------------------------------------------------


def run_case(case: str, dtype_name: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """Checks and times all variants of one case and prints its table; returns the rows.

    Raises:
        WrongResult: If a variant's result is wrong.
    """
    if case in PAIR_CASES:
        return run_pair_case(case, dtype_name, env, args)
    shape, device, dtype = CASES[case], torch.device(args.device), DTYPES[dtype_name]
    logits_bytes = shape[0] * shape[1] * dtype.itemsize
    bytes_min = 3 * logits_bytes
    n_sets = 1 if args.warm else rotation_sets(2 * logits_bytes, int(env["cache_bytes"]))  # type: ignore[call-overload]
    generator = torch.Generator().manual_seed(0)
    student0 = (args.logit_scale * torch.randn(shape, generator=generator)).to(device, dtype)
    teacher0 = (args.logit_scale * torch.randn(shape, generator=generator)).to(device, dtype)
    student = [student0.clone().requires_grad_() for _ in range(n_sets)]
    teacher = [teacher0.clone() for _ in range(n_sets)]
    common = {**env, "benchmark": "kd_loss", "case": case, "shape": list(shape), "dtype": dtype_name}
    common["temperature"] = args.temperature

    names = [n for n in args.variants if n in KD_VARIANTS and not (n == "kl_div_fp32" and dtype == torch.float32)]
    variants, checks, absent = build_variants(
        names,
        lambda name: make_variant(name, student, teacher, args.temperature),
        lambda v: check_variant(v, student[0], teacher[0], temperature=args.temperature, dtype_name=dtype_name),
        n_sets=n_sets,
        device=device,
    )
    variants.append(copy_variant(bytes_min, n_sets, device))
    measured = measure(
        variants, make_clock(device), n_sets=n_sets, rounds=args.rounds, min_sample_s=args.min_sample_ms * 1e-3
    )
    rows = timing_rows(measured, n_sets=n_sets, bytes_min=bytes_min, baseline="ard", common=common)
    for row in rows:
        row.update({"loss_rel_error": None, "grad_rel_error": None, **checks.get(str(row["variant"]), {})})
    rows += [unavailable_row(name, reason, common=common) for name, reason in absent.items()]
    print_case(rows, bytes_min)
    return rows


def run_pair_case(case: str, dtype_name: str, env: Row, args: argparse.Namespace) -> list[Row]:
    """As `run_case`, for the losses of two students' rows."""
    loss, size = PAIR_CASES[case]
    device, dtype = torch.device(args.device), DTYPES[dtype_name]
    cache = int(env["cache_bytes"])  # type: ignore[call-overload]
    n_sets = 1 if args.warm else rotation_sets(_pair_losses.set_bytes(loss, size, dtype), cache)
    problem = _pair_losses.problem(loss, size, dtype_name, dtype, device, n_sets, args.logit_scale)
    return run_problem(problem, "kd_loss", case, dtype_name, env, args, n_sets)


def print_case(rows: Sequence[Row], bytes_min: int) -> None:
    """Prints one case's table."""
    first = rows[0]
    shape = "x".join(map(str, first["shape"]))  # type: ignore[call-overload]
    print(
        f"\n{first['case']}  {shape}  {first['dtype']} logits  T={first['temperature']:g}  "
        f"least traffic {bytes_min / 1e6:.3g} MB, {first['buffer_sets']} buffer sets"
    )

    def error(value: object) -> str:
        return "-" if value is None else f"{value:.1e}"

    table = [
        [
            str(r["variant"]),
            number(r["median_us"]),
            number(r["q3_us"] - r["q1_us"]),  # type: ignore[operator]
            number(r["min_us"]),
            number(r["gb_per_s"]),
            number(r["pct_of_copy"]),
            number(r["speedup_vs_baseline"]),
            number(r["fused_speedup"]),
            error(r["loss_rel_error"]),
            error(r["grad_rel_error"]),
        ]
        for r in rows
        if r["status"] == "ok"
    ]
    headers = ["variant", "us", "IQR us", "min us", "GB/s", "% of copy", "x ard", "fused is x", "loss err", "grad err"]
    print(format_table(headers, table))
    for r in rows:
        if r["status"] != "ok":
            print(f"{r['variant']}: {r['status']}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""

    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--temperature", type=float, default=30.0, help="default 30, as ARD")
        parser.add_argument("--logit-scale", type=float, default=5.0, help="standard deviation of the logits")

    args = parse_args(
        "The fused distillation loss, forward and backward, against the ways it is written today.",
        argv,
        cases=(*CASES, *PAIR_CASES),
        quick_cases=QUICK_CASES,
        dtypes=tuple(DTYPES),
        variants=VARIANTS,
        extra=extra,
    )
    # KLDivLoss() warns at each call that 'mean' is not the KL divergence; it is what the script uses
    warnings.filterwarnings("ignore", message="reduction: 'mean' divides the total loss")
    return run("bench_kd_loss", args, lambda case, dtype, env: run_case(case, dtype, env, args))


if __name__ == "__main__":
    sys.exit(main())
