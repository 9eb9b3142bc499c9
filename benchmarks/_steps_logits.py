"""The gradient of the attack's loss for the logits, and the ways it is got today. For bench_steps.py.

Variants, all from logits [B, C] and labels [B] (for kl target logits [B, C]) to the gradient of the summed loss:

    eager            the loss as the peers write it, and torch.autograd.grad
    compile          torch.compile of that loss, forward and backward
    closed           the gradient's formula in eager operations, no autograd
    compile_closed   torch.compile of `closed`: the least a compiler can make of it
    fused            ard_fast.functional.attack_gradient

Least traffic: read the logits (and the target's), write the gradient, read the labels.
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
LOSSES = ("ce", "margin", "dlr", "kl")
VARIANTS = ("eager", "compile", "closed", "compile_closed", "fused")

KAPPA = 50.0
LOGIT_SCALE = 5.0
DENOMINATOR = 1e-12

BOUNDS = {"fp32": 2e-5, "bf16": 8e-3}
"""Largest allowed relative error of the fused gradient; in bf16 one rounding of the output."""
BASELINE_BOUNDS = {"fp32": 1e-3, "bf16": 0.1}


def ce(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy, summed."""
    return nnF.cross_entropy(logits, labels, reduction="sum")


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Carlini and Wagner's margin as the published evaluations write it, with a one-hot mask."""
    one_hot = torch.zeros_like(logits).scatter_(1, labels[:, None], 1.0)
    real = (one_hot * logits).sum(1)
    other = ((1 - one_hot) * logits - one_hot * 10000).max(1)[0]
    return -torch.clamp(real - other + KAPPA, min=0).sum()


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """Croce and Hein's DLR (2020, equation 6) with a full sort, as AutoAttack does."""
    ordered, indices = logits.sort(dim=1)
    is_top = (indices[:, -1] == labels).to(logits.dtype)
    real = logits.gather(1, labels[:, None])[:, 0]
    other = ordered[:, -2] * is_top + ordered[:, -1] * (1 - is_top)
    return -((real - other) / (ordered[:, -1] - ordered[:, -3] + DENOMINATOR)).sum()


def kl(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || logits), summed, as in TRADES and RSLAD."""
    return nnF.kl_div(nnF.log_softmax(logits, dim=1), nnF.softmax(target, dim=1), reduction="sum")


LOSS_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": ce, "margin": margin, "dlr": dlr, "kl": kl}


def _classes(logits: Tensor) -> Tensor:
    return torch.arange(logits.shape[1], device=logits.device)


def ce_closed(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of `ce`: softmax minus one-hot."""
    return torch.softmax(logits, 1) - (_classes(logits) == labels[:, None]).to(logits.dtype)


def margin_closed(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of `margin`: +1 at the largest other class and -1 at the label, where the margin is active."""
    at_label = _classes(logits) == labels[:, None]
    other, j = logits.masked_fill(at_label, -torch.inf).max(1, keepdim=True)
    active = logits.gather(1, labels[:, None]) - other + KAPPA > 0
    return active * ((_classes(logits) == j).to(logits.dtype) - at_label.to(logits.dtype))


def dlr_closed(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of `dlr` from the three largest logits, found one after another so that a compiler can fuse it."""
    classes = _classes(logits)
    z1, i1 = logits.max(1, keepdim=True)
    rest = logits.masked_fill(classes == i1, -torch.inf)
    z2, i2 = rest.max(1, keepdim=True)
    z3, i3 = rest.masked_fill(classes == i2, -torch.inf).max(1, keepdim=True)
    is_top = i1 == labels[:, None]
    z_other, i_other = torch.where(is_top, z2, z1), torch.where(is_top, i2, i1)
    inverse = 1 / (z1 - z3 + DENOMINATOR)
    ratio = (logits.gather(1, labels[:, None]) - z_other) * inverse

    def at(i: Tensor) -> Tensor:
        return (classes == i).to(logits.dtype)

    return inverse * (at(i_other) - at(labels[:, None]) + ratio * (at(i1) - at(i3)))


def kl_closed(logits: Tensor, target: Tensor) -> Tensor:
    """Gradient of `kl`: the difference of the two softmaxes."""
    return torch.softmax(logits, 1) - torch.softmax(target, 1)


CLOSED_FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": ce_closed,
    "margin": margin_closed,
    "dlr": dlr_closed,
    "kl": kl_closed,
}


def set_bytes(loss: str, size: str, dtype: torch.dtype) -> int:
    """Returns the bytes of one buffer set."""
    b, c = SIZES[size]
    return b * c * dtype.itemsize * (2 if loss == "kl" else 1)


def problem(loss: str, size: str, dtype_name: str, dtype: torch.dtype, device: torch.device, n_sets: int) -> Problem:
    """Returns the gradient of `loss` at `size`, logits of standard deviation `LOGIT_SCALE`."""
    b, c = SIZES[size]
    generator = torch.Generator().manual_seed(0)

    def normal() -> Tensor:
        return (LOGIT_SCALE * torch.randn(b, c, generator=generator)).to(device, dtype)

    logits0 = normal()
    labels = torch.randint(c, (b,), generator=generator).to(device)
    labels = torch.where(torch.arange(b, device=device) % 2 == 0, logits0.argmax(1), labels)  # half of them right
    target0 = normal() if loss == "kl" else labels
    logits = copies(logits0, n_sets)
    leaves = [t.detach().requires_grad_() for t in logits]
    target = copies(target0, n_sets) if loss == "kl" else [labels] * n_sets

    def make(name: str) -> Variant:
        if name in ("eager", "compile"):
            function = LOSS_FUNCTIONS[loss] if name == "eager" else compiled(LOSS_FUNCTIONS[loss])
            call = lambda i: torch.autograd.grad(function(leaves[i], target[i]), leaves[i])[0]  # type: ignore[arg-type]  # noqa: E731
        elif name in ("closed", "compile_closed"):
            closed = CLOSED_FORMS[loss] if name == "closed" else compiled(CLOSED_FORMS[loss])
            call = lambda i: closed(logits[i], target[i])  # noqa: E731
        elif name == "fused":
            from ard_fast import functional as F

            call = lambda i: F.attack_gradient(logits[i], target[i], loss=loss, kappa=KAPPA)  # noqa: E731
        else:
            raise ValueError(f"variant: expected one of {', '.join(VARIANTS)}, got {name!r}")
        return Variant(name, call, lambda n: None)

    def check(variant: Variant) -> Row:
        return check_gradient(loss, variant, logits0, target0, dtype_name)

    n_inputs = 2 if loss == "kl" else 1
    return Problem(
        shape=(b, c),
        bytes_min=(n_inputs + 1) * b * c * dtype.itemsize + (0 if loss == "kl" else 8 * b),
        traffic="logits" + (", target" if loss == "kl" else ", labels") + " read, gradient written",
        baseline="eager",
        names=VARIANTS,
        make=make,
        check=check,
    )


def check_gradient(loss: str, variant: Variant, logits: Tensor, target: Tensor, dtype_name: str) -> Row:
    """Compares a gradient with autograd's in float64 on the same logits.

    Rows whose largest logits are equal, as happens in bf16, are left out: their gradient is a matter of choice.

    Raises:
        WrongResult: If the relative error is beyond the variant's bound.
    """
    exact = logits.detach().double().requires_grad_()
    (want,) = torch.autograd.grad(LOSS_FUNCTIONS[loss](exact, target.double() if loss == "kl" else target), exact)
    top = exact.detach().topk(4, dim=1).values
    rows = (top.diff(dim=1) != 0).all(1)
    if loss in ("ce", "kl"):
        rows = torch.ones_like(rows)
    got: Tensor = variant.call(0)  # type: ignore[assignment]
    if got.shape != want.shape:
        raise WrongResult(f"{variant.name}, {loss}: shape {tuple(got.shape)} instead of {tuple(want.shape)}")
    error = float((got.double() - want)[rows].norm() / want[rows].norm())
    bound = (BOUNDS if variant.name == "fused" else BASELINE_BOUNDS)[dtype_name]
    if not error <= bound:  # so that NaN fails
        raise WrongResult(f"{variant.name}, {loss}, {dtype_name}: relative error {error:.3g}, allowed {bound:.0e}")
    return {"checked": f"relative error {error:.1e}"}
