"""Attacks of this package, of its peers and in plain torch under one call. For bench_attacks.py.

The peers are optional, and made and called as their own users do it. What their attacks here need of their packages
comes without their dependencies on old torch:

    pip install --no-deps torchattacks==3.5.1 pyautoattack==0.2.0
    pip install requests   # imported by torchattacks

All attack a network in eval mode with images in [0, 1]. Nothing is done for or against a peer: parameters that require
a gradient stay so, because that is how a user's network comes, and construction is outside of what is timed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as nnF
from _published import ascend, published_pgd, uniform_noise
from torch import Tensor, nn

from ard_fast import attacks
from ard_fast.folding import FoldedNetwork

Attack = Callable[[Tensor, Tensor], Tensor]
"""From images [B, ...] and labels [B] to adversarial images [B, ...]."""

TINY = 1e-12

PEERS = {
    "pgd": "torchattacks",
    "pgd-l2": "torchattacks",
    "mifgsm": "torchattacks",
    "apgd-ce": "pyautoattack",
    "apgd-ce-l2": "pyautoattack",
    "apgd-dlr": "pyautoattack",
}
"""By attack, the package that has it in the same form."""


@dataclass(frozen=True)
class Setting:
    """One attack as everybody is given it.

    Attributes:
        attack: A key of `PEERS`.
        eps: Radius of the ball, of images in [0, 1].
        step_size: Likewise; not used by APGD, which chooses its own.
        steps: Gradient steps.
    """

    attack: str
    eps: float
    step_size: float
    steps: int

    @property
    def l2(self) -> bool:
        """Whether the ball is one in L2."""
        return self.attack.endswith("-l2")


# ---------------------------------------------------------------------------------------------------------------------
# This package
# ---------------------------------------------------------------------------------------------------------------------


def ours(s: Setting, *, drop_every: int = 0) -> attacks.GradientAttack:
    """The package's attack; `drop_every` as `APGD`'s, which is how the evaluation runs it."""
    if s.attack == "mifgsm":
        return attacks.MIFGSM(eps=s.eps, step_size=s.step_size, steps=s.steps, decay=1.0)
    norm = "l2" if s.l2 else "linf"
    if s.attack.startswith("pgd"):
        return attacks.PGD(eps=s.eps, step_size=s.step_size, steps=s.steps, norm=norm)
    loss = "dlr" if "-dlr" in s.attack else "ce"
    return attacks.APGD(eps=s.eps, steps=s.steps, norm=norm, loss=loss, drop_every=drop_every)


def folded(s: Setting, model: nn.Module, x: Tensor, *, bf16: bool = False, graph: bool = False) -> Attack:
    """The attack as training runs it: on the network with its batch norms folded, anew for every call."""
    network = FoldedNetwork(model, x[:16], dtype=torch.bfloat16 if bf16 else torch.float32)
    attack = attacks.GraphedPGD(ours(s)) if graph else ours(s)

    def call(x: Tensor, y: Tensor) -> Tensor:
        network.refresh()
        return attack(network, x.contiguous(memory_format=torch.channels_last), y)

    return call


# ---------------------------------------------------------------------------------------------------------------------
# Peers
# ---------------------------------------------------------------------------------------------------------------------


def torchattacks_attack(s: Setting, model: nn.Module) -> Attack:
    """That of torchattacks.

    Raises:
        ImportError: If it, or something it imports, is not installed.
    """
    import torchattacks

    if s.attack == "mifgsm":
        return torchattacks.MIFGSM(model, eps=s.eps, alpha=s.step_size, steps=s.steps, decay=1.0)
    form = torchattacks.PGDL2 if s.l2 else torchattacks.PGD
    return form(model, eps=s.eps, alpha=s.step_size, steps=s.steps, random_start=True)


def pyautoattack_attack(s: Setting, model: nn.Module) -> Attack:
    """That of pyautoattack, AutoAttack's code.

    Raises:
        ImportError: If it, or something it imports, is not installed.
    """
    from pyautoattack.autopgd_base import APGDAttack

    return APGDAttack(
        model,
        n_iter=s.steps,
        norm="L2" if s.l2 else "Linf",
        eps=s.eps,
        seed=0,
        loss="dlr" if "-dlr" in s.attack else "ce",
        device=next(model.parameters()).device,
    ).perturb


def published_attack(s: Setting, model: nn.Module) -> Attack:
    """The loop of the published ARD code."""
    settings = {"eps": s.eps, "step_size": s.step_size, "steps": s.steps}
    return lambda x, y: published_pgd(model, x, y, uniform_noise(x, s.eps), **settings)


# ---------------------------------------------------------------------------------------------------------------------
# Plain torch, as one would write it with care: no host sync, no weight gradients, bounds computed once
# ---------------------------------------------------------------------------------------------------------------------


def _l2_step(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, step_size: float) -> Tensor:
    scale = step_size / torch.linalg.vector_norm(grad, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)
    delta = torch.addcmul(x_adv, grad, scale) - x
    back = (eps / torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)).clamp_max(1.0)
    return torch.addcmul(x, delta, back).clamp(0.0, 1.0)


def _accumulate(momentum: Tensor, grad: Tensor) -> Tensor:
    return momentum + grad / torch.linalg.vector_norm(grad, ord=1, dim=(1, 2, 3), keepdim=True).clamp_min(TINY)


def plain_attack(s: Setting, model: nn.Module, *, compile: bool) -> Attack:
    """PGD or MI-FGSM in plain torch; with `compile` what lies outside the network is compiled, its gradient excepted.

    Raises:
        ValueError: There is no plain form of the attack.
    """
    if s.attack.startswith("apgd"):
        raise ValueError("Auto-PGD has no plain form; bench_ops.py has its step")
    prepare = torch.compile if compile else lambda function, **_: function
    move = prepare(_l2_step if s.l2 else ascend, fullgraph=True, dynamic=False)
    accumulate = prepare(_accumulate, fullgraph=True, dynamic=False)

    def start(x: Tensor) -> Tensor:
        if s.attack == "mifgsm":
            return x.clone()
        if not s.l2:
            return (x + uniform_noise(x, s.eps)).clamp_(0, 1)
        delta = torch.randn_like(x)
        radius = s.eps * torch.rand(len(x), 1, 1, 1, device=x.device)
        return (x + radius * delta / torch.linalg.vector_norm(delta, dim=(1, 2, 3), keepdim=True)).clamp_(0, 1)

    def call(x: Tensor, y: Tensor) -> Tensor:
        x_adv, momentum = start(x), torch.zeros_like(x)
        for _ in range(s.steps):
            probe = x_adv.detach().requires_grad_()
            (grad,) = torch.autograd.grad(nnF.cross_entropy(model(probe), y, reduction="sum"), probe)
            if s.attack == "mifgsm":
                momentum = grad = accumulate(momentum, grad)
            x_adv = move(x_adv, grad, x, s.eps, s.step_size)
        return x_adv

    return call
