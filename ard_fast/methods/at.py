"""Plain adversarial training (Madry, Makelov, Schmidt, Tsipras, Vladu; ICLR 2018)."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.methods.base import PGDMethod
from ard_fast.methods.shared import TRAIN_MODE_ATTACK, recipe


@dataclass(eq=False, repr=False, kw_only=True)
class AdversarialTraining(PGDMethod):
    """CE(S(x'), y), averaged over the batch, x' attacking the same: what `AttackingMethod` does, by PGD."""

    name = "at"
    summary = "PGD adversarial training: CE(S(x'), y) (Madry et al., ICLR 2018)"
    paper = recipe()
    quirks = (TRAIN_MODE_ATTACK,)

    label_smoothing: float = 0.0

    def conventions(self) -> list[str]:
        return ["loss CE(S(x'), y), mean over the batch; x' attacks CE(S(x'), y)"]
