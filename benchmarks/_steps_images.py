"""The L2 step, the momentum step and the choice of the better image, and the ways they are done today.

For bench_steps.py. Variants:

    torchattacks   the expressions of torchattacks.PGDL2 and .MIFGSM
    mask           the choice by a boolean mask on both sides
    lean           the leanest eager form: in place, nothing that is not needed; for the choice torch.where
    compile        torch.compile of `lean`
    fused          ard_fast.functional.pgd_l2_step_, mifgsm_step_, select_best_

Least traffic, an element: the L2 step reads x_adv, grad, x and writes x_adv (16 bytes with fp32 gradients); the
momentum step also reads and writes the momentum (24); the choice reads and writes the winners' pixels (8, here for half
of the samples).
"""

from __future__ import annotations

import torch
from _cli import Row, WrongResult
from _problem import Problem, compiled, copies, require_close
from _timing import Variant
from torch import Tensor

SIZES: dict[str, tuple[int, ...]] = {
    "cifar-128": (128, 3, 32, 32),
    "imagenet-16": (16, 3, 224, 224),
    "imagenet-128": (128, 3, 224, 224),
    "digits-1": (1, 1, 8, 8),
}
OPERATORS = ("l2", "mifgsm", "select")

EPS = 8 / 255
STEP = 2 / 255
EPS_L2 = 0.5
STEP_L2 = 0.125
TINY = 1e-12


def images(size: str, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns clean images uniform in [0, 1], an iterate at most 0.03 from them, and a gradient of about 1e-3."""
    shape = SIZES[size]
    x = torch.rand(shape, generator=generator)
    x_adv = (x + torch.empty_like(x).uniform_(-EPS, EPS, generator=generator)).clamp_(0, 1)
    grad = torch.randn(shape, generator=generator).mul_(1e-3)
    return x.to(device), x_adv.to(device), grad.to(device)


# ---------------------------------------------------------------------------------------------------------------------
# The L2 step
# ---------------------------------------------------------------------------------------------------------------------


def torchattacks_l2_step(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """One step as in torchattacks (Harry24k/adversarial-attacks-pytorch, torchattacks/attacks/pgdl2.py)."""
    b = len(x)
    grad_norms = torch.norm(grad.view(b, -1), p=2, dim=1) + 1e-10
    out = x_adv.detach() + STEP_L2 * (grad / grad_norms.view(b, 1, 1, 1))
    delta = out - x
    delta_norms = torch.norm(delta.view(b, -1), p=2, dim=1)
    factor = torch.min(EPS_L2 / delta_norms, torch.ones_like(delta_norms))
    return torch.clamp(x + delta * factor.view(-1, 1, 1, 1), min=0, max=1).detach()


def lean_l2_step_(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """The same in place, with two norms and five other passes."""
    scale = STEP_L2 / torch.linalg.vector_norm(grad, dim=(1, 2, 3), keepdim=True, dtype=torch.float32).clamp_min(TINY)
    x_adv.addcmul_(grad, scale).sub_(x)
    back = (EPS_L2 / torch.linalg.vector_norm(x_adv, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)).clamp_max(1.0)
    return x_adv.mul_(back).add_(x).clamp_(0.0, 1.0)


def compiled_l2_step_(x_adv: Tensor, grad: Tensor, x: Tensor) -> Tensor:
    """`lean_l2_step_` for the compiler: out of place, so that it may choose what to keep, and written once."""
    grad = grad.float()
    scale = STEP_L2 / torch.linalg.vector_norm(grad, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)
    delta = x_adv + scale * grad - x
    back = (EPS_L2 / torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)).clamp_max(1.0)
    return x_adv.copy_((x + delta * back).clamp(0.0, 1.0))


def l2_problem(size: str, dtype: torch.dtype, device: torch.device, n_sets: int) -> Problem:
    """Returns the L2 step at `size`; the gradients are of `dtype`."""
    x0, x_adv0, grad0 = images(size, torch.Generator().manual_seed(0), device)
    grad0 = grad0.to(dtype)
    x, x_adv, grad = copies(x0, n_sets), copies(x_adv0, n_sets), copies(grad0, n_sets)
    names = ("torchattacks", "lean", "compile", "fused")

    def reset(n: int) -> None:
        for i in range(n):
            x_adv[i].copy_(x_adv0)

    def make(name: str) -> Variant:
        if name == "fused":
            from ard_fast import functional as F

            call = lambda i: F.pgd_l2_step_(  # noqa: E731
                x_adv[i], grad[i], x[i], step_size=STEP_L2, eps=EPS_L2, check_bounds=False
            )
        else:
            step = {
                "torchattacks": lambda: torchattacks_l2_step,
                "lean": lambda: lean_l2_step_,
                "compile": lambda: compiled(compiled_l2_step_),
            }[name]()
            call = lambda i: step(x_adv[i], grad[i], x[i])  # noqa: E731
        return Variant(name, call, reset)

    def check(variant: Variant) -> Row:
        reset(1)
        want = torchattacks_l2_step(x_adv0.double(), grad0.double(), x0.double())
        # torchattacks takes its norm in bf16 when the gradient is
        tolerance = 1e-3 if dtype != torch.float32 and variant.name == "torchattacks" else 1e-6
        require_close(variant.name, "x_adv", variant.call(0), want, tolerance)  # type: ignore[arg-type]
        return {"checked": f"within {tolerance:.0e}"}

    return Problem(
        shape=SIZES[size],
        bytes_min=x0.numel() * (12 + dtype.itemsize),
        traffic="x_adv, grad, x read, x_adv written",
        baseline="torchattacks",
        names=names,
        make=make,
        check=check,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The momentum step
# ---------------------------------------------------------------------------------------------------------------------


def torchattacks_mifgsm_step(x_adv: Tensor, momentum: Tensor, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """One step as in torchattacks (torchattacks/attacks/mifgsm.py), decay 1; its momentum counts in means, not sums."""
    grad = grad / torch.mean(torch.abs(grad), dim=(1, 2, 3), keepdim=True)
    grad = grad + momentum * 1.0
    out = x_adv.detach() + STEP * grad.sign()
    delta = torch.clamp(out - x, min=-EPS, max=EPS)
    return torch.clamp(x + delta, min=0, max=1).detach(), grad


def lean_mifgsm_step_(x_adv: Tensor, momentum: Tensor, grad: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The same in place, with bounds computed once per attack (not timed)."""
    norm = torch.linalg.vector_norm(grad, ord=1, dim=(1, 2, 3), keepdim=True, dtype=torch.float32).clamp_min(TINY)
    momentum.addcdiv_(grad, norm)
    return x_adv.add_(momentum.sign(), alpha=STEP).clamp_(low, high)


def compiled_mifgsm_step(x_adv: Tensor, momentum: Tensor, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The same for the compiler, with bounds from x, which saves it a tensor to read.

    To new tensors: inductor (torch 2.13, CPU) fails on the form that writes over both inputs.
    """
    norm = grad.float().abs().sum((1, 2, 3), keepdim=True).clamp_min(TINY)
    total = momentum + grad / norm
    out = torch.minimum(torch.maximum(x_adv + STEP * total.sign(), x - EPS), x + EPS)
    return out.clamp(0.0, 1.0), total


def mifgsm_problem(size: str, dtype: torch.dtype, device: torch.device, n_sets: int) -> Problem:
    """Returns the momentum step at `size`; the gradients are of `dtype`."""
    generator = torch.Generator().manual_seed(0)
    x0, x_adv0, grad0 = images(size, generator, device)
    pixels = x0[0].numel()
    momentum0 = (torch.randn(x0.shape, generator=generator) / pixels).to(device)
    grad0 = grad0.to(dtype)
    x, x_adv, grad, momentum = (copies(t, n_sets) for t in (x0, x_adv0, grad0, momentum0))
    low, high = copies((x0 - EPS).clamp_(min=0), n_sets), copies((x0 + EPS).clamp_(max=1), n_sets)
    names = ("torchattacks", "lean", "compile", "fused")

    def reset(n: int) -> None:
        for i in range(n):
            x_adv[i].copy_(x_adv0)
            momentum[i].copy_(momentum0)

    def make(name: str) -> Variant:
        if name == "torchattacks":
            in_means = copies(momentum0 * pixels, n_sets)
            call = lambda i: torchattacks_mifgsm_step(x_adv[i], in_means[i], grad[i], x[i])  # noqa: E731
        elif name == "lean":
            call = lambda i: lean_mifgsm_step_(x_adv[i], momentum[i], grad[i], low[i], high[i])  # noqa: E731
        elif name == "compile":
            step = compiled(compiled_mifgsm_step)
            call = lambda i: step(x_adv[i], momentum[i], grad[i], x[i])  # noqa: E731
        elif name == "fused":
            from ard_fast import functional as F

            call = lambda i: F.mifgsm_step_(  # noqa: E731
                x_adv[i], momentum[i], grad[i], x[i], step_size=STEP, eps=EPS, decay=1.0, check_bounds=False
            )
        else:
            raise ValueError(f"variant: expected one of {', '.join(names)}, got {name!r}")
        return Variant(name, call, reset)

    def check(variant: Variant) -> Row:
        reset(1)
        want, total = torchattacks_mifgsm_step(
            x_adv0.double(), momentum0.double() * pixels, grad0.double(), x0.double()
        )
        out = variant.call(0)
        got, got_momentum = out if isinstance(out, tuple) else (out, momentum[0])
        clear = total.abs() > (0.05 if dtype != torch.float32 and variant.name == "torchattacks" else 1e-4)
        tolerance = 1e-6  # where the momentum is nearly 0 its sign is a matter of rounding
        if dtype != torch.float32 and variant.name == "torchattacks":
            tolerance = 1e-3
        require_close(variant.name, "x_adv", got[clear], want[clear].to(got.dtype), tolerance)
        scale = 1 if variant.name == "torchattacks" else pixels
        require_close(variant.name, "momentum", got_momentum * scale, total, 1e-3 if tolerance < 1e-4 else 0.05)
        return {"checked": f"within {tolerance:.0e}"}

    return Problem(
        shape=SIZES[size],
        bytes_min=x0.numel() * (20 + dtype.itemsize),
        traffic="x_adv, momentum, grad, x read, x_adv, momentum written",
        baseline="torchattacks",
        names=names,
        make=make,
        check=check,
    )


# ---------------------------------------------------------------------------------------------------------------------
# The choice of the better image
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


def select_problem(size: str, dtype: torch.dtype, device: torch.device, n_sets: int) -> Problem:
    """Returns the choice at `size`, where every other sample improves, the first one included.

    Raises:
        ValueError: If `dtype` is not float32: no gradient is involved.
    """
    if dtype != torch.float32:
        raise ValueError("select: fp32 only")
    x0, candidate0, _ = images(size, torch.Generator().manual_seed(0), device)
    b = x0.shape[0]
    best, candidate = copies(x0, n_sets), copies(candidate0, n_sets)
    best_loss = torch.zeros(b, device=device)
    loss = torch.ones(b, device=device)
    loss[1::2] = -1.0
    winners = int((loss > best_loss).sum())
    names = ("mask", "lean", "compile", "fused")

    def reset(n: int) -> None:
        for i in range(n):
            best[i].copy_(x0)

    def make(name: str) -> Variant:
        if name == "fused":
            from ard_fast import functional as F

            call = lambda i: F.select_best_(best[i], best_loss, candidate[i], loss)  # noqa: E731
        else:
            select = {
                "mask": lambda: mask_select_,
                "lean": lambda: where_select_,
                "compile": lambda: compiled(where_select_),
            }[name]()
            call = lambda i: select(best[i], best_loss, candidate[i], loss)  # noqa: E731
        return Variant(name, call, reset)

    def check(variant: Variant) -> Row:
        reset(1)
        new_loss = variant.call(0)
        want = x0.clone()
        want[loss > best_loss] = candidate0[loss > best_loss]
        if not torch.equal(best[0], want) or not torch.equal(new_loss, torch.maximum(loss, best_loss)):  # type: ignore[arg-type]
            raise WrongResult(f"{variant.name}: not the better image or loss of each sample")
        return {"checked": "bit-equal"}

    return Problem(
        shape=SIZES[size],
        bytes_min=8 * winners * x0[0].numel() + 12 * b,
        traffic="the winners' pixels read and written, losses",
        baseline="mask",
        names=names,
        make=make,
        check=check,
        uncapturable=frozenset({"mask"}),
    )


PROBLEMS = {"l2": l2_problem, "mifgsm": mifgsm_problem, "select": select_problem}


def set_bytes(operator: str, size: str, dtype: torch.dtype) -> int:
    """Returns the bytes of one buffer set."""
    tensors = {"l2": 2, "mifgsm": 3, "select": 2}[operator]  # of float32, beside the gradient
    return torch.Size(SIZES[size]).numel() * (4 * tensors + (0 if operator == "select" else dtype.itemsize))
