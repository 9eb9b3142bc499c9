"""Attacks of a single step: FGSM, and the two that make it fit for fast adversarial training."""

from __future__ import annotations

from copy import copy
from typing import Any

from torch import Tensor

from ard_fast import functional as F
from ard_fast.attacks.base import Problem
from ard_fast.attacks.pgd import PGD
from ard_fast.functional import AttackGradient
from ard_fast.functional._arguments import nonnegative


class FGSM(PGD):
    """The fast gradient sign method (Goodfellow, Shlens, Szegedy; ICLR 2015): one step of size eps from the image.

    Args:
        norm: "linf", or "l2" for the normalised gradient (the fast gradient method).
        Others: as for `PGD`.
    """

    def __init__(
        self,
        eps: float | Tensor = 8 / 255,
        norm: str = "linf",
        loss: str = "ce",
        targeted: bool = False,
        bn: str = "eval",
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        eot: int = 1,
        kappa: float = 50.0,
    ) -> None:
        super().__init__(
            eps=eps,
            step_size=eps,
            steps=1,
            norm=norm,
            loss=loss,
            random_start=False,
            targeted=targeted,
            bn=bn,
            bounds=bounds,
            eot=eot,
            kappa=kappa,
        )


class FGSMRS(PGD):
    """FGSM from a random start, "FGSM-RS" (Wong, Rice, Kolter; ICLR 2020), in the L-infinity ball.

    Uniform start in the ball, clamped to the pixel range; one step of `relative_step` * eps; projection.

    Args:
        relative_step: step size in units of eps; the paper takes 1.25 (10/255 for eps 8/255).
        Others: as for `PGD`.
    """

    def __init__(
        self,
        eps: float | Tensor = 8 / 255,
        relative_step: float = 1.25,
        loss: str = "ce",
        targeted: bool = False,
        bn: str = "eval",
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        eot: int = 1,
    ) -> None:
        self.relative_step = nonnegative(relative_step, "relative_step")
        super().__init__(
            eps=eps,
            step_size=_times(eps, self.relative_step),
            steps=1,
            loss=loss,
            targeted=targeted,
            bn=bn,
            bounds=bounds,
            eot=eot,
        )


class NFGSM(PGD):
    """Noise-FGSM (de Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania; NeurIPS 2022).

    Noise uniform in +-`noise` * eps, clamped to the pixel range, then one step of `relative_step` * eps, and no
    projection onto the eps-ball: the result may be as far as (noise + relative_step) * eps from the image.

    Args:
        noise: half-width of the noise in units of eps; the paper takes 2 (3 for SVHN at eps 12/255).
        relative_step: step size in units of eps; the paper takes 1.
        Others: as for `PGD`.
    """

    scale_free = True

    def __init__(
        self,
        eps: float | Tensor = 8 / 255,
        noise: float = 2.0,
        loss: str = "ce",
        targeted: bool = False,
        bn: str = "eval",
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        eot: int = 1,
        relative_step: float = 1.0,
    ) -> None:
        self.noise = nonnegative(noise, "noise")
        self.relative_step = nonnegative(relative_step, "relative_step")
        super().__init__(
            eps=eps,
            step_size=_times(eps, self.relative_step),
            steps=1,
            loss=loss,
            targeted=targeted,
            bn=bn,
            bounds=bounds,
            eot=eot,
        )

    def start(self, problem: Problem, seed: int | Tensor | None) -> Tensor:
        """The noise, wider than the ball."""
        wide = copy(self)  # not `replace`: the noise may be wider than `bounds`, an eps may not
        wide.eps = _times(self.eps, self.noise)
        return super(NFGSM, wide).start(problem, seed)

    def step(self, x_adv: Tensor, outcome: AttackGradient, problem: Problem, state: Any) -> Tensor:
        """The signed step, clamped to the pixel range only: the ball is as wide as that range."""
        lower, upper = self.bounds
        return F.pgd_linf_step_(
            x_adv,
            outcome.grad,
            problem.x,
            step_size=self.step_size,
            eps=upper - lower,
            targeted=self.targeted,
            bounds=self.bounds,
            check_bounds=False,
        )


def _times(eps: float | Tensor, factor: float) -> float | Tensor:
    return eps * factor if isinstance(eps, Tensor) else nonnegative(eps, "eps") * factor
