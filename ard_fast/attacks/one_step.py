"""Attacks of a single step: FGSM, and the two that make it fit for fast adversarial training."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ard_fast._typing import known
from ard_fast.attacks.base import Problem
from ard_fast.attacks.pgd import PGD
from ard_fast.functional._arguments import nonnegative
from ard_fast.functional.gradients import AttackGradient
from ard_fast.functional.steps import pgd_linf_step_


@dataclass(eq=False, repr=False)
class _OneStep(PGD):
    """One step of `relative_step` * eps."""

    step_size: float | Tensor | None = field(default=None, init=False)
    steps: int = field(default=1, init=False)
    random_start: bool = field(default=True, init=False)
    restarts: int = field(default=1, init=False)
    clamp_start: bool = field(default=True, init=False)
    init: str = field(default="uniform", init=False)
    std: float = field(default=0.001, init=False)
    relative_step: float = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        self.relative_step = nonnegative(self.relative_step, "relative_step")
        self.step_size = _times(self.eps, self.relative_step)
        super().__post_init__()


@dataclass(eq=False, repr=False)
class FGSM(_OneStep):
    """The fast gradient sign method (Goodfellow, Shlens, Szegedy; ICLR 2015): one step of size eps from the image.

    Args:
        norm: "linf", or "l2" for the normalised gradient (the fast gradient method).
        Others: as for `PGD`.
    """

    random_start: bool = field(default=False, init=False)
    relative_step: float = field(default=1.0, init=False)


@dataclass(eq=False, repr=False)
class FGSMRS(_OneStep):
    """FGSM from a random start, "FGSM-RS" (Wong, Rice, Kolter; ICLR 2020), in the L-infinity ball.

    Uniform start in the ball, clamped to the pixel range; one step of `relative_step` * eps; projection.

    Args:
        relative_step: step size in units of eps; the paper takes 1.25 (10/255 for eps 8/255).
        Others: as for `PGD`.
    """

    norm: str = field(default="linf", init=False)
    relative_step: float = field(default=1.25, kw_only=True)


@dataclass(eq=False, repr=False)
class NFGSM(_OneStep):
    """Noise-FGSM (de Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania; NeurIPS 2022).

    Noise uniform in +-`noise` * eps, clamped to the pixel range, then one step of `relative_step` * eps, and no
    projection onto the eps-ball: the result may be as far as (noise + relative_step) * eps from the image.

    Args:
        noise: half-width of the noise in units of eps; the paper takes 2 (3 for SVHN at eps 12/255).
        relative_step: step size in units of eps; the paper takes 1.
        Others: as for `PGD`.
    """

    scale_free = True

    norm: str = field(default="linf", init=False)
    noise: float = field(default=2.0, kw_only=True)

    def __post_init__(self) -> None:
        self.noise = nonnegative(self.noise, "noise")
        super().__post_init__()

    def start(self, problem: Problem, seed: int | Tensor | None) -> Tensor:
        """The noise, wider than the ball."""
        wide = copy(self)  # not `replace`: the noise may be wider than `bounds`, an eps may not
        wide.eps = _times(self.eps, self.noise)
        return super(NFGSM, wide).start(problem, seed)

    def step(self, x_adv: Tensor, outcome: AttackGradient, problem: Problem, state: Any) -> Tensor:
        """The signed step, clamped to the pixel range only: the ball is as wide as that range."""
        lower, upper = self.bounds
        return pgd_linf_step_(
            x_adv,
            outcome.grad,
            problem.x,
            step_size=known(self.step_size),
            eps=upper - lower,
            targeted=self.targeted,
            bounds=self.bounds,
            levels=self.levels,
            check_bounds=False,
        )


def _times(eps: float | Tensor, factor: float) -> float | Tensor:
    return eps * factor if isinstance(eps, Tensor) else nonnegative(eps, "eps") * factor
