"""The fused losses against the ways they are written today: forward and backward, speed and accuracy.

    python benchmarks/bench_kd_loss.py [--device cpu|cuda] [--json FILE] [--quick]

Cases c*: the distillation loss from student and teacher logits [B, C] to its value and its gradient for the student.

    ard          the published ARD script: T*T*KLDivLoss()(log_softmax(s/T), softmax(t/T)), mean over B*C
    kl_div       the same loss as PyTorch's page advises: F.kl_div(..., "batchmean", log_target=True) * T*T
    kl_div_fp32  kl_div on logits.float() (bf16 logits only): what accuracy costs in eager
    compile      torch.compile of kl_div, forward and backward
    fused        ard_fast.functional.kl_distill_loss, batchmean

Cases trades-*, mart-*, rslad-*: the losses of two students' rows, with both gradients.

    eager        the loss as its published script writes it, and autograd
    compile      torch.compile of that, forward and backward
    composed     from the fused distillation loss of one student and torch's cross-entropy: it reads the logits again
    fused        ard_fast.functional.trades_loss, mart_loss, rslad_loss

On CUDA every variant is also timed as a captured graph (`...+graph`); `copy` moves as many bytes as the loss must.

Least traffic: read each row of logits once, write each gradient, read the labels. `checked` shows the relative errors
of the loss, |l - l64| / |l64|, and of the gradients, ||g - g64|| / ||g64||, against the formula in float64 on the same
(rounded) logits. Ours must stay below its stated bounds, every fp32 baseline below looser ones, or nothing is timed;
bf16 baselines compute in bf16 as written, and their errors are shown, not judged.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as nnF
from _run import DTYPES, Problem, Row, Sets, compiled, copies, parse_args, require_errors, run, run_problem
from torch import Tensor

KD_SIZES = {
    "c10-128": (128, 10),
    "c100-128": (128, 100),
    "c1000-128": (128, 1000),
    "c1000-4096": (4096, 1000),
    "c32000-128": (128, 32000),
    "c32003-128": (128, 32003),
}
PAIR_SIZES = {"c10-128": (128, 10), "c100-128": (128, 100), "c1000-4096": (4096, 1000)}
CASES = {
    **{name: ("kd", size) for name, size in KD_SIZES.items()},
    **{f"{loss}-{name}": (loss, size) for loss in ("trades", "mart", "rslad") for name, size in PAIR_SIZES.items()},
}
VARIANTS = ("ard", "kl_div", "kl_div_fp32", "eager", "compile", "composed", "fused")

TRADES_BETA, MART_BETA = 6.0, 5.0

BOUNDS = {torch.float32: (2e-5, 1e-4), torch.bfloat16: (2e-5, 8e-3)}
"""Largest allowed relative errors of the fused loss and gradients; in bf16 one rounding of each gradient."""
BASELINE_BOUNDS = {"kd": (0.05, 0.05), "trades": (1e-3, 1e-3), "rslad": (1e-3, 1e-3), "mart": (0.01, 0.2)}
"""The same of the others in fp32; MART's script adds 1e-12 to probabilities, which shows where they are as small."""

LossFn = Callable[..., Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# The distillation loss of one student
# ---------------------------------------------------------------------------------------------------------------------


def ard(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    """The distillation term as written in the ARD script (goldblum/AdversariallyRobustDistillation, main.py)."""
    return t * t * torch.nn.KLDivLoss()(nnF.log_softmax(student / t, dim=1), nnF.softmax(teacher / t, dim=1))


def kl_div(student: Tensor, teacher: Tensor, t: float) -> Tensor:
    """The same divergence as torch's documentation advises: batchmean, both sides as log-probabilities."""
    log_p, log_q = nnF.log_softmax(student / t, dim=1), nnF.log_softmax(teacher / t, dim=1)
    return nnF.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * (t * t)


def exact_kd(student: Tensor, teacher: Tensor, t: float, *, mean: bool) -> Tensor:
    """The formula written out; `mean` divides by B*C, else by B."""
    log_p, log_q = (student / t).log_softmax(1), (teacher / t).log_softmax(1)
    return t * t * (log_q.exp() * (log_q - log_p)).sum() / (student.numel() if mean else len(student))


def kd_problem(
    size: tuple[int, int], dtype: torch.dtype, device: torch.device, options: argparse.Namespace, sets: Sets
) -> Problem:
    """Returns the distillation loss of one student."""
    from ard_fast import functional as F

    generator = torch.Generator().manual_seed(0)
    student0, teacher0 = (options.logit_scale * torch.randn(2, *size, generator=generator)).to(device, dtype)
    logits_bytes = student0.numel() * dtype.itemsize
    n, t = sets(2 * logits_bytes), options.temperature
    student, teacher = [s.requires_grad_() for s in copies(student0, n)], copies(teacher0, n)

    def of(loss_fn: LossFn) -> Callable[[int], tuple[Tensor, Tensor]]:
        def call(i: int) -> tuple[Tensor, Tensor]:
            loss = loss_fn(student[i], teacher[i])
            return loss, torch.autograd.grad(loss, student[i])[0]

        return call

    def check(name: str, out: tuple[Tensor, Tensor]) -> Row:
        s = student0.double().requires_grad_()
        loss = exact_kd(s, teacher0.double(), t, mean=name == "ard")
        bounds = BOUNDS[dtype] if name == "fused" else None
        if name == "kl_div_fp32" or (dtype == torch.float32 and name != "fused"):
            bounds = BASELINE_BOUNDS["kd"]
        return {"temperature": t, **require_errors(name, out, (loss, torch.autograd.grad(loss, s)[0]), bounds)}

    makers = {
        "ard": lambda: of(partial(ard, t=t)),
        "kl_div": lambda: of(partial(kl_div, t=t)),
        "kl_div_fp32": lambda: of(lambda student, teacher: kl_div(student.float(), teacher.float(), t)),
        "compile": lambda: of(compiled(partial(kl_div, t=t))),
        "fused": lambda: of(partial(F.kl_distill_loss, temperature=t, reduction="batchmean")),
    }
    if dtype == torch.float32:
        del makers["kl_div_fp32"]  # it is kl_div
    return Problem(size, 3 * logits_bytes, "both logits read, a gradient written", "ard", makers, check)


# ---------------------------------------------------------------------------------------------------------------------
# The losses of two students' rows: (adversarial logits, clean logits, labels or teacher logits) -> loss
# ---------------------------------------------------------------------------------------------------------------------


def trades(adv: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """As in the authors' trades.py."""
    robust = nnF.kl_div(nnF.log_softmax(adv, dim=1), nnF.softmax(clean, dim=1), reduction="sum")
    return nnF.cross_entropy(clean, labels) + TRADES_BETA * robust / len(adv)


def mart(adv: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """As in the authors' mart.py, with a sort for the two most likely classes."""
    p, q = nnF.softmax(adv, dim=1), nnF.softmax(clean, dim=1)
    top = torch.argsort(p, dim=1)[:, -2:]
    rival = torch.where(top[:, -1] == labels, top[:, -2], top[:, -1])
    boosted = nnF.cross_entropy(adv, labels) + nnF.nll_loss(torch.log(1.0001 - p + 1e-12), rival)
    of_label = q.gather(1, labels[:, None])[:, 0]
    rows = nnF.kl_div(torch.log(p + 1e-12), q, reduction="none").sum(1) * (1.0000001 - of_label)
    return boosted + MART_BETA * rows.mean()


def rslad(adv: Tensor, clean: Tensor, teacher: Tensor) -> Tensor:
    """As in the authors' rslad.py, with its hand-written divergence."""
    q = nnF.softmax(teacher, dim=1)

    def divergence(student: Tensor) -> Tensor:
        return (q * torch.log(q + 1e-5) - q * nnF.log_softmax(student, dim=1)).mean()

    return 5 / 6 * divergence(adv) + 1 / 6 * divergence(clean)


def composed_trades(adv: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """TRADES from one-student operators."""
    from ard_fast import functional as F

    return nnF.cross_entropy(clean.float(), labels) + TRADES_BETA * F.kl_distill_loss(adv, clean)


def composed_mart(adv: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
    """MART from one-student operators."""
    from ard_fast import functional as F

    others = nnF.softmax(adv.float(), dim=1).scatter(1, labels[:, None], -1.0).amax(1)
    boosted = nnF.cross_entropy(adv.float(), labels) - torch.log(1.0001 - others).mean()
    doubt = 1.0 - nnF.softmax(clean.float(), dim=1).gather(1, labels[:, None])[:, 0]
    return boosted + MART_BETA * (F.kl_distill_loss(adv, clean, reduction="none") * doubt).mean()


def composed_rslad(adv: Tensor, clean: Tensor, teacher: Tensor) -> Tensor:
    """RSLAD from one-student operators."""
    from ard_fast import functional as F

    return 5 / 6 * F.kl_distill_loss(adv, teacher, reduction="mean") + 1 / 6 * F.kl_distill_loss(
        clean, teacher, reduction="mean"
    )


PUBLISHED: dict[str, LossFn] = {"trades": trades, "mart": mart, "rslad": rslad}
COMPOSED: dict[str, LossFn] = {"trades": composed_trades, "mart": composed_mart, "rslad": composed_rslad}


def from_package(loss: str, functions: object) -> LossFn:
    """Returns the loss in `ard_fast.functional` or `ard_fast.reference`, which have it under the same name."""
    function = getattr(functions, f"{loss}_loss")
    if loss == "rslad":
        return lambda adv, clean, teacher: function(adv, student_logits=clean, teacher_logits=teacher)
    return lambda adv, clean, labels: function(adv, clean_logits=clean, labels=labels)


def pair_problem(
    loss: str,
    size: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
    options: argparse.Namespace,
    sets: Sets,
) -> Problem:
    """Returns a loss of two students' rows."""
    from ard_fast import functional, reference

    generator = torch.Generator().manual_seed(0)
    adv, clean, teacher = (options.logit_scale * torch.randn(3, *size, generator=generator)).to(device, dtype)
    labels = torch.randint(size[1], (size[0],), generator=generator).to(device)
    target = teacher if loss == "rslad" else labels
    n_inputs = 3 if loss == "rslad" else 2
    logits_bytes = adv.numel() * dtype.itemsize
    n = sets(n_inputs * logits_bytes)
    leaves = [[t.requires_grad_() for t in copies(logits, n)] for logits in (adv, clean)]
    targets = copies(target, n)

    def of(loss_fn: LossFn) -> Callable[[int], tuple[Tensor, ...]]:
        def call(i: int) -> tuple[Tensor, ...]:
            inputs = leaves[0][i], leaves[1][i]
            value = loss_fn(*inputs, targets[i])
            return value, *torch.autograd.grad(value, inputs)

        return call

    def check(name: str, out: tuple[Tensor, ...]) -> Row:
        inputs = [logits.double().requires_grad_() for logits in (adv, clean)]
        value = from_package(loss, reference)(*inputs, target.double() if loss == "rslad" else target)
        bounds = BOUNDS[dtype] if name == "fused" else None
        if name != "fused" and dtype == torch.float32:
            bounds = BASELINE_BOUNDS[loss]
        return require_errors(name, out, (value, *torch.autograd.grad(value, inputs)), bounds)

    return Problem(
        shape=size,
        bytes_min=(n_inputs + 2) * logits_bytes + (0 if loss == "rslad" else 8 * size[0]),
        traffic=f"{n_inputs} rows of logits read, 2 gradients written",
        baseline="eager",
        makers={
            "eager": lambda: of(PUBLISHED[loss]),
            "compile": lambda: of(compiled(PUBLISHED[loss])),
            "composed": lambda: of(COMPOSED[loss]),
            "fused": lambda: of(from_package(loss, functional)),
        },
        check=check,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status (0 timed, 1 wrong result, 2 no device)."""

    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--temperature", type=float, default=30.0, help="of the kd cases; default 30, as ARD")
        parser.add_argument("--logit-scale", type=float, default=5.0, help="standard deviation of the logits")

    args = parse_args(
        str(__doc__),
        argv,
        cases=CASES,
        quick_cases=("c10-128", "c1000-128", "trades-c10-128", "mart-c10-128", "rslad-c10-128"),
        dtypes=tuple(DTYPES),
        variants=VARIANTS,
        extra=extra,
    )
    # KLDivLoss() warns at each call that 'mean' is not the KL divergence; it is what the script uses
    warnings.filterwarnings("ignore", message="reduction: 'mean' divides the total loss")

    def run_case(case: str, dtype: str, env: Row) -> list[Row]:
        loss, size = CASES[case]
        make = kd_problem if loss == "kd" else partial(pair_problem, loss)
        make = partial(make, size, DTYPES[dtype], torch.device(args.device), args)
        return run_problem(make, args, {**env, "benchmark": "kd_loss", "case": case, "dtype": dtype})

    return run("bench_kd_loss", args, run_case)


if __name__ == "__main__":
    sys.exit(main())
