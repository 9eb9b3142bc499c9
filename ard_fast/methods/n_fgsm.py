"""N-FGSM training (de Jorge et al.; NeurIPS 2022, arXiv 2202.01181): wide noise, one step, no projection."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.attacks.one_step import NFGSM
from ard_fast.attacks.pgd import PGD
from ard_fast.methods.base import AttackingMethod
from ard_fast.methods.shared import recipe


@dataclass(eq=False, repr=False, kw_only=True)
class NoiseFGSMTraining(AttackingMethod):
    """CE(S(x'), y), x' by N-FGSM, which may lie outside the eps-ball.

    Attributes:
        noise_ratio: half-width of the start's noise in units of eps.
    """

    name = "n-fgsm"
    summary = "N-FGSM: CE(S(x'), y), one step from wide noise, no projection (de Jorge et al., NeurIPS 2022)"
    step_ratio = 1.0
    paper = recipe(epochs=30, milestones=None, schedule="cyclic", lr=0.2, weight_decay=5e-4)

    attack_bn: str = "train"
    noise_ratio: float = 2.0
    label_smoothing: float = 0.0

    def make_attack(self) -> PGD:
        return NFGSM(eps=self.eps, noise=self.noise_ratio, bn=self.attack_bn, relative_step=self.relative_step)

    def conventions(self) -> list[str]:
        return [
            "loss CE(S(x'), y), mean over the batch; x' is one step on CE(S(x'), y) from uniform noise of "
            f"{self.noise_ratio:g} eps, not projected onto the ball"
        ]
