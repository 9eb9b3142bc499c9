"""PGD on the divergence from a target distribution: the inner problems of TRADES, RSLAD and AdaAD."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from ard_fast import functional as F
from ard_fast.attacks.base import Problem
from ard_fast.attacks.pgd import PGD
from ard_fast.functional import AttackGradient


class KLPGD(PGD):
    """PGD that raises T^2 KL(target^T || model^T), from a start of small normal noise.

    What the call's `y` is decides the problem: target logits `[B, C]` stay fixed (RSLAD: the teacher at the clean
    images); None takes the model's own logits at the clean images (TRADES; Zhang et al., ICML 2019); a model is
    evaluated at every iterate, in eval mode and left without a trace, and its gradient flows too (AdaAD; Huang et al.,
    CVPR 2023).

    Args:
        random_start: start at x + `std` * N(0, 1), not clamped unless `clamp_start`.
        temperature: T.
        Others: as for `PGD`.
    """

    accepts_target_model = True
    scale_free = True

    def __init__(
        self,
        eps: float | Tensor = 8 / 255,
        step_size: float | Tensor = 2 / 255,
        steps: int = 10,
        norm: str = "linf",
        random_start: bool = True,
        restarts: int = 1,
        targeted: bool = False,
        bn: str = "eval",
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        clamp_start: bool = False,
        init: str = "normal",
        std: float = 0.001,
        temperature: float = 1.0,
        eot: int = 1,
    ) -> None:
        super().__init__(
            eps=eps,
            step_size=step_size,
            steps=steps,
            norm=norm,
            loss="kl",
            random_start=random_start,
            restarts=restarts,
            targeted=targeted,
            bn=bn,
            bounds=bounds,
            clamp_start=clamp_start,
            init=init,
            std=std,
            eot=eot,
            temperature=temperature,
        )

    def differentiate(self, logits: Tensor, probe: Tensor, problem: Problem, with_rows: bool) -> AttackGradient:
        """Through the model and, if the target is a model whose logits depend on the iterate, through that as well."""
        if isinstance(problem.y, Tensor):
            return super().differentiate(logits, probe, problem, with_rows)
        target = self.forward(problem.y, probe)
        if not target.requires_grad:
            return super().differentiate(logits, probe, replace(problem, y=target), with_rows)
        grad, grad_target, scale = F.attack_gradient(
            logits.detach(),
            target.detach(),
            loss="kl",
            temperature=self.temperature,
            with_target_grad=True,
            scaled=True,
        )
        gradients = cast("list[Tensor]", [grad, grad_target])
        images = self.back_to_images([logits, target], probe, gradients, cast("Tensor", scale), problem)
        return AttackGradient(images, None, None)

    def rows(self, problem: Problem, x_adv: Tensor) -> tuple[Tensor, Tensor | None]:
        """The divergence of each sample at the iterate."""
        if isinstance(problem.y, Tensor):
            return super().rows(problem, x_adv)
        with torch.no_grad():
            return super().rows(replace(problem, y=self.forward(problem.y, x_adv)), x_adv)
