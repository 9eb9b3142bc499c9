"""Fast adversarial training (Wong, Rice, Kolter; ICLR 2020, arXiv 2001.03994): one step from a random start."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.attacks.one_step import FGSMRS
from ard_fast.attacks.pgd import PGD
from ard_fast.methods.base import AttackingMethod
from ard_fast.methods.shared import recipe


@dataclass(eq=False, repr=False, kw_only=True)
class FastAdversarialTraining(AttackingMethod):
    """CE(S(x'), y), x' by FGSM-RS: uniform start, one step, projection."""

    name = "fgsm-rs"
    summary = "FGSM-RS: CE(S(x'), y), one step from a random start (Wong et al., ICLR 2020)"
    step_ratio = 1.25
    paper = recipe(epochs=15, milestones=None, schedule="cyclic", lr=0.2, weight_decay=5e-4)

    attack_bn: str = "train"
    label_smoothing: float = 0.0

    def make_attack(self) -> PGD:
        return FGSMRS(eps=self.eps, relative_step=self.relative_step, bn=self.attack_bn)

    def conventions(self) -> list[str]:
        return ["loss CE(S(x'), y), mean over the batch; x' is one step on CE(S(x'), y) from a uniform start"]
