"""The losses that read two or three rows of logits a sample, and the ways they are got today. For bench_kd_loss.py.

Variants, all from logits [B, C] (and labels [B]) to the loss and its gradients for both live logits:

    eager      the loss as its published script writes it, and autograd
    compile    torch.compile of that, forward and backward
    composed   from the fused distillation loss of one student and torch's cross-entropy: what reading the logits again
               costs
    fused      ard_fast.functional.trades_loss, mart_loss, rslad_loss

Least traffic: read each row of logits once, write both gradients, read the labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnF
from _cli import Row, WrongResult
from _problem import Problem, compiled, copies
from _timing import Variant
from torch import Tensor

SIZES = {"c10-128": (128, 10), "c100-128": (128, 100), "c1000-4096": (4096, 1000)}
LOSSES = ("trades", "mart", "rslad")
VARIANTS = ("eager", "compile", "composed", "fused")

TRADES_BETA, MART_BETA = 6.0, 5.0

BOUNDS = {"fp32": (2e-5, 1e-4), "bf16": (2e-5, 8e-3)}
"""Largest allowed relative errors of the fused loss and gradients; in bf16 one rounding of each gradient."""
BASELINE_BOUNDS = {"trades": (1e-3, 1e-3), "rslad": (1e-3, 1e-3), "mart": (0.01, 0.2)}
"""The same of the others in fp32; MART's script adds 1e-12 to probabilities, which shows where they are as small."""

# (adversarial logits, clean logits, labels or teacher logits) -> loss
LossFn = Callable[[Tensor, Tensor, Tensor], Tensor]


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


PUBLISHED: dict[str, LossFn] = {"trades": trades, "mart": mart, "rslad": rslad}


def composed_loss(loss: str) -> LossFn:
    """Returns the loss from the fused distillation loss of one student."""
    from ard_fast import functional as F

    def composed_mart(adv: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        p = nnF.softmax(adv.float(), dim=1)
        others = p.scatter(1, labels[:, None], -1.0).amax(1)
        boosted = nnF.cross_entropy(adv.float(), labels) - torch.log(1.0001 - others).mean()
        doubt = 1.0 - nnF.softmax(clean.float(), dim=1).gather(1, labels[:, None])[:, 0]
        return boosted + MART_BETA * (F.kl_distill_loss(adv, clean, reduction="none") * doubt).mean()

    return {
        "trades": lambda adv, clean, labels: (
            nnF.cross_entropy(clean.float(), labels) + TRADES_BETA * F.kl_distill_loss(adv, clean)
        ),
        "mart": composed_mart,
        "rslad": lambda adv, clean, teacher: (
            5 / 6 * F.kl_distill_loss(adv, teacher, reduction="mean")
            + 1 / 6 * F.kl_distill_loss(clean, teacher, reduction="mean")
        ),
    }[loss]


def fused_loss(loss: str) -> LossFn:
    """Returns the fused loss."""
    from ard_fast import functional as F

    return {
        "trades": lambda adv, clean, labels: F.trades_loss(adv, clean_logits=clean, labels=labels, beta=TRADES_BETA),
        "mart": lambda adv, clean, labels: F.mart_loss(adv, clean_logits=clean, labels=labels, beta=MART_BETA),
        "rslad": lambda adv, clean, teacher: F.rslad_loss(adv, student_logits=clean, teacher_logits=teacher),
    }[loss]


def set_bytes(loss: str, size: str, dtype: torch.dtype) -> int:
    """Returns the bytes of one buffer set."""
    b, c = SIZES[size]
    return b * c * dtype.itemsize * (3 if loss == "rslad" else 2)


def problem(
    loss: str, size: str, dtype_name: str, dtype: torch.dtype, device: torch.device, n_sets: int, logit_scale: float
) -> Problem:
    """Returns `loss` at `size`, the logits drawn with standard deviation `logit_scale`."""
    b, c = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    drawn = [(logit_scale * torch.randn(b, c, generator=generator)).to(device, dtype) for _ in range(3)]
    labels = torch.randint(c, (b,), generator=generator).to(device)
    leaves = [[t.requires_grad_() for t in copies(logits, n_sets)] for logits in drawn[:2]]
    target0 = drawn[2] if loss == "rslad" else labels
    target = copies(target0, n_sets)

    def make(name: str) -> Variant:
        if name in ("eager", "compile"):
            function = PUBLISHED[loss] if name == "eager" else compiled(PUBLISHED[loss])
        elif name in ("composed", "fused"):
            function = composed_loss(loss) if name == "composed" else fused_loss(loss)
        else:
            raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {name!r}")

        def call(i: int) -> tuple[Tensor, ...]:
            inputs = leaves[0][i], leaves[1][i]
            value = function(*inputs, target[i])
            return value, *torch.autograd.grad(value, inputs)

        return Variant(name, call, lambda n: None)

    n_inputs = 3 if loss == "rslad" else 2
    return Problem(
        shape=(b, c),
        bytes_min=(n_inputs + 2) * b * c * dtype.itemsize + (0 if loss == "rslad" else 8 * b),
        traffic=f"{n_inputs} rows of logits read, 2 gradients written",
        baseline="eager",
        names=VARIANTS,
        make=make,
        check=lambda variant: check_variant(loss, variant, *drawn[:2], target0, dtype_name),
    )


def check_variant(loss: str, variant: Variant, adv: Tensor, clean: Tensor, target: Tensor, dtype_name: str) -> Row:
    """Compares loss and gradients with the textbook form in float64 on the same logits; returns the errors.

    Raises:
        WrongResult: If they are beyond the variant's bounds.
    """
    from ard_fast import reference

    inputs = [t.detach().double().requires_grad_() for t in (adv, clean)]
    formula = {"trades": reference.trades_loss, "mart": reference.mart_loss, "rslad": reference.rslad_loss}[loss]
    other, last = ("student_logits", "teacher_logits") if loss == "rslad" else ("clean_logits", "labels")
    given = {other: inputs[1], last: target.double() if loss == "rslad" else target}
    want_loss = formula(inputs[0], **given)
    wants = torch.autograd.grad(want_loss, inputs)
    got_loss, *grads = variant.call(0)  # type: ignore[misc]
    want_loss = want_loss.detach()
    loss_error = float((got_loss.detach().double() - want_loss).abs() / want_loss.abs())
    grad_error = max(float((g.double() - w).norm() / w.norm()) for g, w in zip(grads, wants, strict=True))
    bounds = None
    if variant.name == "fused":
        bounds = BOUNDS[dtype_name]
    elif dtype_name == "fp32":  # in bf16 the others compute in bf16 as written: shown, not judged
        bounds = BASELINE_BOUNDS[loss]
    if bounds and not (loss_error <= bounds[0] and grad_error <= bounds[1]):  # so that NaN fails
        raise WrongResult(
            f"{variant.name}, {loss}, {dtype_name}: relative error of loss {loss_error:.3g}, of gradients "
            f"{grad_error:.3g}; allowed {bounds[0]:.0e} and {bounds[1]:.0e}"
        )
    return {
        "loss_rel_error": loss_error,
        "grad_rel_error": grad_error,
        "checked": f"errors {loss_error:.0e}, {grad_error:.0e}",
    }
