"""The gradient of the attack's loss for the logits, and the ways it is got today. For bench_ops.py.

    eager            the loss as the peers write it, and torch.autograd.grad
    compile          torch.compile of that loss, forward and backward
    closed           the gradient's formula in eager operations, no autograd
    compile_closed   torch.compile of `closed`: the least a compiler can make of it
    fused            ard_fast.functional.attack_gradient

All from logits [B, C] and labels [B] (for kl target logits [B, C]) to the gradient of the summed loss. Least traffic:
read the logits (and the target's), write the gradient, read the labels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnF
from _run import Problem, Row, Sets, WrongResult, compiled, copies
from torch import Tensor

SIZES = {"c10-128": (128, 10), "c100-128": (128, 100), "c1000-4096": (4096, 1000)}
LOSSES = ("ce", "margin", "dlr", "kl")

KAPPA = 50.0
LOGIT_SCALE = 5.0
TINY = 1e-12

BOUNDS = {torch.float32: (2e-5, 1e-3), torch.bfloat16: (8e-3, 0.1)}
"""Largest allowed relative errors of the fused gradient (in bf16 one rounding of the output) and of the others."""


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
    return -((real - other) / (ordered[:, -1] - ordered[:, -3] + TINY)).sum()


def kl(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target || logits), summed, as in TRADES and RSLAD."""
    return nnF.kl_div(nnF.log_softmax(logits, dim=1), nnF.softmax(target, dim=1), reduction="sum")


def _at(logits: Tensor, i: Tensor) -> Tensor:
    """One-hot rows [B, C] of indices [B, 1]."""
    return (torch.arange(logits.shape[1], device=logits.device) == i).to(logits.dtype)


def ce_closed(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of `ce`: softmax minus one-hot."""
    return torch.softmax(logits, 1) - _at(logits, labels[:, None])


def margin_closed(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of `margin`: +1 at the largest other class and -1 at the label, where the margin is active."""
    at_label = _at(logits, labels[:, None])
    other, j = logits.masked_fill(at_label != 0, -torch.inf).max(1, keepdim=True)
    active = logits.gather(1, labels[:, None]) - other + KAPPA > 0
    return active * (_at(logits, j) - at_label)


def dlr_closed(logits: Tensor, labels: Tensor) -> Tensor:
    """Gradient of `dlr` from the three largest logits, found one after another so that a compiler can fuse it."""
    z1, i1 = logits.max(1, keepdim=True)
    rest = logits.masked_fill(_at(logits, i1) != 0, -torch.inf)
    z2, i2 = rest.max(1, keepdim=True)
    z3, i3 = rest.masked_fill(_at(logits, i2) != 0, -torch.inf).max(1, keepdim=True)
    is_top = i1 == labels[:, None]
    z_other, i_other = torch.where(is_top, z2, z1), torch.where(is_top, i2, i1)
    inverse = 1 / (z1 - z3 + TINY)
    ratio = (logits.gather(1, labels[:, None]) - z_other) * inverse
    label = _at(logits, labels[:, None])
    return inverse * (_at(logits, i_other) - label + ratio * (_at(logits, i1) - _at(logits, i3)))


def kl_closed(logits: Tensor, target: Tensor) -> Tensor:
    """Gradient of `kl`: the difference of the two softmaxes."""
    return torch.softmax(logits, 1) - torch.softmax(target, 1)


Form = Callable[[Tensor, Tensor], Tensor]
LOSS_FORMS: dict[str, Form] = {"ce": ce, "margin": margin, "dlr": dlr, "kl": kl}
CLOSED_FORMS: dict[str, Form] = {"ce": ce_closed, "margin": margin_closed, "dlr": dlr_closed, "kl": kl_closed}


def gradient(loss: str, size: str, dtype: torch.dtype, device: torch.device, sets: Sets) -> Problem:
    """Returns the gradient of `loss` at `size`, logits of standard deviation `LOGIT_SCALE`."""
    from ard_fast import functional as F

    b, c = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    logits0, target_logits = (LOGIT_SCALE * torch.randn(2, b, c, generator=generator)).to(device, dtype)
    labels = torch.randint(c, (b,), generator=generator).to(device)
    labels = torch.where(torch.arange(b, device=device) % 2 == 0, logits0.argmax(1), labels)  # half of them right
    target0 = target_logits if loss == "kl" else labels
    n_inputs = 2 if loss == "kl" else 1
    n = sets(n_inputs * logits0.numel() * dtype.itemsize)
    logits, target = copies(logits0, n), copies(target0, n)
    leaves = [t.detach().requires_grad_() for t in logits]

    def by_autograd(function: Form) -> Callable[[int], Tensor]:
        return lambda i: torch.autograd.grad(function(leaves[i], target[i]), leaves[i])[0]

    def closed(function: Form) -> Callable[[int], Tensor]:
        return lambda i: function(logits[i], target[i])

    def check(name: str, got: Tensor) -> Row:
        """Against autograd in float64, without rows whose largest logits are equal, as happens in bf16."""
        exact = logits0.double().requires_grad_()
        (want,) = torch.autograd.grad(LOSS_FORMS[loss](exact, target0.double() if loss == "kl" else target0), exact)
        rows = (exact.detach().topk(4, dim=1).values.diff(dim=1) != 0).all(1) | torch.tensor(loss in ("ce", "kl"))
        error = float((got.double() - want)[rows].norm() / want[rows].norm())
        bound = BOUNDS[dtype][name != "fused"]
        if not error <= bound:  # so that NaN fails
            raise WrongResult(f"{name}, {loss}: relative error {error:.3g}, allowed {bound:.0e}")
        return {"checked": f"relative error {error:.1e}"}

    return Problem(
        shape=(b, c),
        bytes_min=(n_inputs + 1) * logits0.numel() * dtype.itemsize + (0 if loss == "kl" else 8 * b),
        traffic="logits" + (", target" if loss == "kl" else ", labels") + " read, gradient written",
        baseline="eager",
        makers={
            "eager": lambda: by_autograd(LOSS_FORMS[loss]),
            "compile": lambda: by_autograd(compiled(LOSS_FORMS[loss])),
            "closed": lambda: closed(CLOSED_FORMS[loss]),
            "compile_closed": lambda: closed(compiled(CLOSED_FORMS[loss])),
            "fused": lambda: lambda i: F.attack_gradient(logits[i], target[i], loss=loss, kappa=KAPPA),
        },
        check=check,
    )
