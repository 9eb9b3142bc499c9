"""The momentum iterative fast gradient sign method."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ard_fast import functional as F
from ard_fast.attacks.base import Problem
from ard_fast.attacks.pgd import PGD
from ard_fast.functional import AttackGradient
from ard_fast.functional._arguments import nonnegative, positive_int


class MIFGSM(PGD):
    """MI-FGSM (Dong, Liao, Pang, Su, Zhu, Hu, Li; CVPR 2018), L-infinity.

    The momentum adds up gradients, each divided by its L1 norm; steps follow its sign.

    Args:
        step_size: step in pixel units, a number or a tensor `[B]`; None for eps / steps, as in the paper.
        decay: of the momentum, at least 0; the paper takes 1.
        Others: as for `PGD`.
    """

    scale_free = True

    def __init__(
        self,
        eps: float | Tensor = 8 / 255,
        step_size: float | Tensor | None = None,
        steps: int = 10,
        decay: float = 1.0,
        loss: str = "ce",
        random_start: bool = False,
        restarts: int = 1,
        targeted: bool = False,
        bn: str = "eval",
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        eot: int = 1,
        kappa: float = 50.0,
    ) -> None:
        if not isinstance(eps, Tensor):
            eps = nonnegative(eps, "eps")
        super().__init__(
            eps=eps,
            step_size=eps / positive_int(steps, "steps") if step_size is None else step_size,
            steps=steps,
            loss=loss,
            random_start=random_start,
            restarts=restarts,
            targeted=targeted,
            bn=bn,
            bounds=bounds,
            eot=eot,
            kappa=kappa,
        )
        self.decay = nonnegative(decay, "decay")

    def begin(self, problem: Problem, x_adv: Tensor) -> Tensor:
        """The momentum, zero."""
        return torch.zeros_like(x_adv)

    def step(self, x_adv: Tensor, outcome: AttackGradient, problem: Problem, state: Any) -> Tensor:
        """Momentum, signed step, projection and clamp in one operator, in place."""
        return F.mifgsm_step_(
            x_adv,
            state,
            outcome.grad,
            problem.x,
            step_size=self.step_size,
            eps=self.eps,
            decay=self.decay,
            targeted=self.targeted,
            bounds=self.bounds,
            check_bounds=False,
        )
