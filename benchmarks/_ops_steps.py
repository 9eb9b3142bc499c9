"""Steps and starts of the attacks, and the ways they are done today. For bench_ops.py.

    torchattacks   the expressions of torchattacks.PGDL2 and .MIFGSM
    mask           the choice by a boolean mask on both sides
    eager          the random start as the ARD script draws it: torch's own noise
    inplace        the leanest eager form: in place, nothing that is not needed; by torch.where instead of indices
    compile        torch.compile of `inplace`, or to new tensors where inductor fails on the form in place
    fused          ard_fast.functional.pgd_l2_step_, mifgsm_step_, select_best_, random_start

Least traffic, an element of fp32 images: the L2 step reads x_adv, grad, x and writes x_adv (16 bytes); the momentum
step also reads and writes the momentum (24); the choice reads and writes the winners' pixels (8, here for half of the
samples); the start reads x and writes x_adv (8).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from _run import Problem, Row, Sets, WrongResult, compiled, copies, require_close
from torch import Tensor

SIZES: dict[str, tuple[int, ...]] = {
    "cifar-128": (128, 3, 32, 32),
    "imagenet-16": (16, 3, 224, 224),
    "imagenet-128": (128, 3, 224, 224),
    "digits-1": (1, 1, 8, 8),
}

EPS, STEP = 8 / 255, 2 / 255
EPS_L2, STEP_L2 = 0.5, 0.125
TINY = 1e-12


def images(size: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns clean images uniform in [0, 1], two iterates at most 0.03 from them, and a gradient of about 1e-3."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(SIZES[size], generator=generator)
    near = [(x + torch.empty_like(x).uniform_(-EPS, EPS, generator=generator)).clamp_(0, 1) for _ in range(2)]
    grad = torch.randn(SIZES[size], generator=generator).mul_(1e-3)
    return x.to(device), near[0].to(device), near[1].to(device), grad.to(device)


def norm(t: Tensor, ord: int = 2) -> Tensor:
    """The norm of each sample, [B, 1, 1, 1], at least 1e-12; float32 at least."""
    wide = t if t.dtype == torch.float64 else t.float()
    return torch.linalg.vector_norm(wide, ord=ord, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)


# ---------------------------------------------------------------------------------------------------------------------
# The L2 step
# ---------------------------------------------------------------------------------------------------------------------


def torchattacks_l2(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """One step as in torchattacks (Harry24k/adversarial-attacks-pytorch, torchattacks/attacks/pgdl2.py)."""
    b = len(x)
    grad_norms = torch.norm(grad.view(b, -1), p=2, dim=1) + 1e-10
    out = x_adv.detach() + STEP_L2 * (grad / grad_norms.view(b, 1, 1, 1))
    delta = out - x
    delta_norms = torch.norm(delta.view(b, -1), p=2, dim=1)
    factor = torch.min(EPS_L2 / delta_norms, torch.ones_like(delta_norms))
    return torch.clamp(x + delta * factor.view(-1, 1, 1, 1), min=0, max=1).detach()


def inplace_l2_(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """The same in place, with two norms and five other passes."""
    x_adv.addcmul_(grad, STEP_L2 / norm(grad)).sub_(x)
    return x_adv.mul_((EPS_L2 / norm(x_adv)).clamp_max(1.0)).add_(x).clamp_(0.0, 1.0)


def compiled_l2_(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """For the compiler: out of place, so that it may choose what to keep, and written once."""
    delta = x_adv + STEP_L2 / norm(grad) * grad.float() - x
    return x_adv.copy_((x + delta * (EPS_L2 / norm(delta)).clamp_max(1.0)).clamp(0.0, 1.0))


def l2(size: str, dtype: torch.dtype, device: torch.device, sets: Sets) -> Problem:
    """Returns the L2 step at `size`; the gradients are of `dtype`."""
    from ard_fast import functional as F

    x0, x_adv0, _, grad0 = images(size, device)
    grad0 = grad0.to(dtype)
    n = sets(x0.numel() * (8 + dtype.itemsize))
    x, x_adv, grad = copies(x0, n), copies(x_adv0, n), copies(grad0, n)

    def reset(n: int) -> None:
        for i in range(n):
            x_adv[i].copy_(x_adv0)

    def over(step: Callable[..., Any], **settings: Any) -> Callable[[int], Tensor]:
        return lambda i: step(x_adv[i], grad[i], x[i], **settings)

    def check(name: str, got: Tensor) -> Row:
        want = torchattacks_l2(x_adv0.double(), grad0.double(), x0.double())
        # torchattacks takes its norm in bf16 when the gradient is
        return require_close(name, "x_adv", got, want, 1e-3 if dtype != torch.float32 and name != "fused" else 1e-6)

    return Problem(
        shape=SIZES[size],
        bytes_min=x0.numel() * (12 + dtype.itemsize),
        traffic="x_adv, grad, x read, x_adv written",
        baseline="torchattacks",
        makers={
            "torchattacks": lambda: over(torchattacks_l2),
            "inplace": lambda: over(inplace_l2_),
            "compile": lambda: over(compiled(compiled_l2_)),
            "fused": lambda: over(F.pgd_l2_step_, step_size=STEP_L2, eps=EPS_L2, check_bounds=False),
        },
        check=check,
        reset=reset,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The momentum step
# ---------------------------------------------------------------------------------------------------------------------


def torchattacks_mifgsm(x_adv: Tensor, momentum: Tensor, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """One step as in torchattacks (torchattacks/attacks/mifgsm.py), decay 1; its momentum counts in means, not sums."""
    grad = grad / torch.mean(torch.abs(grad), dim=(1, 2, 3), keepdim=True)
    grad = grad + momentum * 1.0
    out = x_adv.detach() + STEP * grad.sign()
    delta = torch.clamp(out - x, min=-EPS, max=EPS)
    return torch.clamp(x + delta, min=0, max=1).detach(), grad


def inplace_mifgsm_(x_adv: Tensor, momentum: Tensor, grad: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The same in place, with bounds computed once per attack (not timed)."""
    momentum.addcdiv_(grad, norm(grad, 1))
    return x_adv.add_(momentum.sign(), alpha=STEP).clamp_(low, high), momentum


def compiled_mifgsm(x_adv: Tensor, momentum: Tensor, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """For the compiler: bounds from x save a tensor to read; to new tensors, since inductor fails on the other form."""
    total = momentum + grad.float() / norm(grad, 1)
    out = torch.minimum(torch.maximum(x_adv + STEP * total.sign(), x - EPS), x + EPS)
    return out.clamp(0.0, 1.0), total


def mifgsm(size: str, dtype: torch.dtype, device: torch.device, sets: Sets) -> Problem:
    """Returns the momentum step at `size`; the gradients are of `dtype`."""
    from ard_fast import functional as F

    x0, x_adv0, _, grad0 = images(size, device)
    pixels, grad0 = x0[0].numel(), grad0.to(dtype)
    momentum0 = torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)).to(device) / pixels
    n = sets(x0.numel() * (12 + dtype.itemsize))
    x, x_adv, grad, momentum = copies(x0, n), copies(x_adv0, n), copies(grad0, n), copies(momentum0, n)
    low, high = copies((x0 - EPS).clamp_(min=0), n), copies((x0 + EPS).clamp_(max=1), n)

    def reset(n: int) -> None:
        for i in range(n):
            x_adv[i].copy_(x_adv0)
            momentum[i].copy_(momentum0)

    def in_means() -> Callable[[int], object]:
        means = copies(momentum0 * pixels, n)
        return lambda i: torchattacks_mifgsm(x_adv[i], means[i], grad[i], x[i])

    def over_compiled() -> Callable[[int], object]:
        step = compiled(compiled_mifgsm)
        return lambda i: step(x_adv[i], momentum[i], grad[i], x[i])

    def fused(i: int) -> tuple[Tensor, Tensor]:
        F.mifgsm_step_(x_adv[i], momentum[i], grad[i], x[i], step_size=STEP, eps=EPS, decay=1.0, check_bounds=False)
        return x_adv[i], momentum[i]

    def check(name: str, out: tuple[Tensor, Tensor]) -> Row:
        want, total = torchattacks_mifgsm(x_adv0.double(), momentum0.double() * pixels, grad0.double(), x0.double())
        rounded = dtype != torch.float32 and name == "torchattacks"  # its means are in bf16 when the gradient is
        clear = total.abs() > (0.05 if rounded else 1e-4)  # where the momentum is nearly 0 its sign is of rounding
        scale = 1 if name == "torchattacks" else pixels
        require_close(name, "momentum", out[1] * scale, total, 0.05 if rounded else 1e-3)
        return require_close(name, "x_adv", out[0][clear], want[clear], 1e-3 if rounded else 1e-6)

    return Problem(
        shape=SIZES[size],
        bytes_min=x0.numel() * (20 + dtype.itemsize),
        traffic="x_adv, momentum, grad, x read, x_adv, momentum written",
        baseline="torchattacks",
        makers={
            "torchattacks": in_means,
            "inplace": lambda: lambda i: inplace_mifgsm_(x_adv[i], momentum[i], grad[i], low[i], high[i]),
            "compile": over_compiled,
            "fused": lambda: fused,
        },
        check=check,
        reset=reset,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The choice of the better image; the random start
# ---------------------------------------------------------------------------------------------------------------------


def mask_select_(best: Tensor, best_loss: Tensor, candidate: Tensor, loss: Tensor) -> Tensor:
    """The better of two by a boolean mask, as AutoAttack does by indices; waits for the device."""
    better = loss > best_loss
    best[better] = candidate[better]
    best_loss = best_loss.clone()
    best_loss[better] = loss[better]
    return best_loss


def where_select_(best: Tensor, best_loss: Tensor, candidate: Tensor, loss: Tensor) -> Tensor:
    """The better of two by torch.where, which reads and writes every image."""
    better = loss > best_loss
    best.copy_(torch.where(better.view(-1, 1, 1, 1), candidate, best))
    return torch.where(better, loss, best_loss)


def select(size: str, dtype: torch.dtype, device: torch.device, sets: Sets) -> Problem:
    """Returns the choice at `size`, where every other sample improves, the first one included."""
    from ard_fast import functional as F

    x0, candidate0, _, _ = images(size, device)
    b = len(x0)
    n = sets(8 * x0.numel())
    best, candidate = copies(x0, n), copies(candidate0, n)
    best_loss, loss = torch.zeros(b, device=device), torch.ones(b, device=device)
    loss[1::2] = -1.0
    better = loss > best_loss

    def reset(n: int) -> None:
        for i in range(n):
            best[i].copy_(x0)

    def over(form: Callable[..., Tensor]) -> Callable[[int], Tensor]:
        return lambda i: form(best[i], best_loss, candidate[i], loss)

    def check(name: str, new_loss: Tensor) -> Row:
        require_close(name, "loss", new_loss, torch.maximum(loss, best_loss), 0.0)
        return require_close(name, "best", best[0], torch.where(better.view(-1, 1, 1, 1), candidate0, x0), 0.0)

    return Problem(
        shape=SIZES[size],
        bytes_min=8 * int(better.sum()) * x0[0].numel() + 12 * b,
        traffic="the winners' pixels read and written, losses",
        baseline="mask",
        makers={
            "mask": lambda: over(mask_select_),
            "inplace": lambda: over(where_select_),
            "compile": lambda: over(compiled(where_select_)),
            "fused": lambda: over(F.select_best_),
        },
        check=check,
        reset=reset,
        uncapturable=("mask",),
    )


def start(size: str, dtype: torch.dtype, device: torch.device, sets: Sets) -> Problem:
    """Returns the uniform start at `size`; its noise is drawn anew in every variant."""
    from ard_fast import functional as F

    x0, *_ = images(size, device)
    n = sets(8 * x0.numel())
    x, seed = copies(x0, n), torch.zeros(1, dtype=torch.int64, device=device)
    kept: list[object] = [None] * n  # so that each result goes to other memory

    def over(form: Callable[[Tensor], Tensor]) -> Callable[[int], Tensor]:
        def call(i: int) -> Tensor:
            kept[i] = out = form(x[i])
            return out

        return call

    def eager(x: Tensor) -> Tensor:
        return (x + torch.zeros_like(x).uniform_(-EPS, EPS)).clamp(0, 1)

    def draw(x: Tensor) -> Tensor:
        return (x + (torch.rand_like(x) * 2 - 1) * EPS).clamp(0, 1)

    def check(name: str, out: Tensor) -> Row:
        delta = (out.double() - x0.double()).abs()
        if not (delta.max() <= EPS + 1e-7 and out.min() >= 0 and out.max() <= 1):  # so that NaN fails
            raise WrongResult(f"{name}: outside of the ball or of [0, 1]")
        if x0.numel() > 1000 and not 0.3 * EPS < float(delta.mean()) < 0.6 * EPS:
            raise WrongResult(f"{name}: a mean change of {float(delta.mean()):.3g}, eps {EPS:.3g}")
        return {"checked": "in the ball"}

    return Problem(
        shape=SIZES[size],
        bytes_min=8 * x0.numel(),
        traffic="x read, x_adv written",
        baseline="eager",
        makers={
            "eager": lambda: over(eager),
            "compile": lambda: over(compiled(draw)),
            "fused": lambda: over(lambda x: F.random_start(x, eps=EPS, seed=seed)),
        },
        check=check,
    )
