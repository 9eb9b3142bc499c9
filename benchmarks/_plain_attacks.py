"""The attacks in plain torch as one would write them with care: the baselines of bench_attacks.py beside the packages.

No host sync, no weight gradients, bounds computed once, in place where that is possible. `compile` hands what lies
outside the network, loss gradient excepted, to torch.compile; the network is the caller's and runs as it comes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnF
from _attack_peers import Attack, Setting
from _steps_logits import DENOMINATOR
from torch import Tensor, nn

from ard_fast.reference import APGDIterate, apgd_step

TINY = 1e-12


def plain_attack(setting: Setting, model: nn.Module, *, compile: bool) -> Attack:
    """Returns the attack of `setting` on `model`; with `compile` its step is compiled."""
    if setting.attack.startswith("apgd"):
        step = torch.compile(apgd_step, fullgraph=True, dynamic=False) if compile else apgd_step
        return lambda x, y: _apgd(setting, model, x, y, step)
    form = {"pgd": _linf_step, "pgd-l2": _l2_step, "mifgsm": _mifgsm_step}[setting.attack]
    form = torch.compile(form, fullgraph=True, dynamic=False) if compile else form
    return lambda x, y: _pgd(setting, model, x, y, form)


def _pgd(
    s: Setting, model: nn.Module, x: Tensor, y: Tensor, step: Callable[..., tuple[Tensor, Tensor | None]]
) -> Tensor:
    """The loop of the signed, the L2 and the momentum attack: momentum starts at 0, the others at random."""
    momentum = None
    if s.attack == "mifgsm":
        x_adv, momentum = x.clone(), torch.zeros_like(x)
    elif s.attack == "pgd-l2":
        delta = torch.randn_like(x)
        radius = s.eps * torch.rand(len(x), 1, 1, 1, device=x.device)
        x_adv = (x + radius * delta / torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)).clamp_(0, 1)
    else:
        x_adv = (x + torch.empty_like(x).uniform_(-s.eps, s.eps)).clamp_(0, 1)
    low, high = (x - s.eps).clamp_(min=0), (x + s.eps).clamp_(max=1)
    for _ in range(s.steps):
        probe = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(nnF.cross_entropy(model(probe), y, reduction="sum"), probe)
        x_adv, momentum = step(x_adv, grad, x, low, high, momentum, s.step_size, s.eps)
    return x_adv


def _linf_step(
    x_adv: Tensor, grad: Tensor, x: Tensor, low: Tensor, high: Tensor, momentum: None, step_size: float, eps: float
) -> tuple[Tensor, None]:
    return torch.clamp(x_adv + step_size * grad.sign(), low, high), None


def _l2_step(
    x_adv: Tensor, grad: Tensor, x: Tensor, low: Tensor, high: Tensor, momentum: None, step_size: float, eps: float
) -> tuple[Tensor, None]:
    scale = step_size / torch.linalg.vector_norm(grad, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)
    delta = torch.addcmul(x_adv, grad, scale) - x
    back = (eps / torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)).clamp_max(1.0)
    return torch.addcmul(x, delta, back).clamp(0.0, 1.0), None


def _mifgsm_step(
    x_adv: Tensor, grad: Tensor, x: Tensor, low: Tensor, high: Tensor, momentum: Tensor, step_size: float, eps: float
) -> tuple[Tensor, Tensor]:
    norm = torch.linalg.vector_norm(grad, ord=1, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)
    momentum = momentum + grad / norm
    return torch.clamp(x_adv + step_size * momentum.sign(), low, high), momentum


def _rows(logits: Tensor, y: Tensor, loss: str) -> Tensor:
    """The loss of each sample, `[B]`."""
    if loss == "ce":
        return nnF.cross_entropy(logits, y, reduction="none")
    top = logits.topk(3, dim=1).values
    real = logits.gather(1, y[:, None])[:, 0]
    other = torch.where(logits.argmax(1) == y, top[:, 1], top[:, 0])
    return -(real - other) / (top[:, 0] - top[:, 2] + DENOMINATOR)


def _apgd(s: Setting, model: nn.Module, x: Tensor, y: Tensor, between: Callable[..., APGDIterate]) -> Tensor:
    """Auto-PGD from a random start on the ball's surface; returns the misclassified point where there was one.

    `between` is the step for all iterations but the first, the last and those at checkpoints.
    """
    from ard_fast.functional import checkpoint_windows

    norm = "l2" if s.attack.endswith("-l2") else "linf"
    loss_name = "dlr" if "-dlr" in s.attack else "ce"
    if norm == "linf":
        noise = torch.rand_like(x).mul_(2).sub_(1)
        length = noise.abs().amax(dim=(1, 2, 3), keepdim=True)
    else:
        noise = torch.randn_like(x)
        length = torch.linalg.vector_norm(noise, dim=(1, 2, 3), keepdim=True)
    x_adv = (x + s.eps * noise / length).clamp_(0, 1)
    zeros = torch.zeros_like(x_adv)
    at = APGDIterate(x_adv, zeros, zeros, zeros, zeros, x.new_zeros(7, len(x)))
    windows = (*checkpoint_windows(s.steps), 0)
    for i, window in enumerate(windows):
        probe = at.x_adv.detach().requires_grad_(i < s.steps)
        with torch.set_grad_enabled(i < s.steps):
            logits = model(probe)
            rows = _rows(logits, y, loss_name)
        grad = torch.autograd.grad(rows.sum(), probe)[0] if i < s.steps else None
        correct = logits.detach().argmax(1) == y
        # every length of a window would be compiled anew: of the steps at checkpoints, one in ten, none is
        step = between if 0 < i < s.steps and not window else apgd_step
        at = step(at, grad, x, rows.detach(), correct, eps=s.eps, norm=norm, first=i == 0, window=window)
    fooled = at.state[6] != 0
    return torch.where(fooled.view(-1, 1, 1, 1), at.x_fooled, at.x_best)
