"""FGSM-ARD: the ARD loss on examples of a single step from a random start."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.methods.ard import ARDMethod
from ard_fast.methods.fgsm_rs import FastAdversarialTraining
from ard_fast.methods.shared import recipe


@dataclass(eq=False, repr=False, kw_only=True)
class FGSMARD(ARDMethod, FastAdversarialTraining):
    """ARD with the attack of Wong, Rice and Kolter (ICLR 2020): 5 units of the student's forward pass a step instead
    of the 23 of ten attack steps. It is no published method; the ARD paper's own fast form is `fast-ard`.
    """

    name = "fgsm-ard"
    summary = "FGSM-ARD: the ARD loss on FGSM-RS examples (Goldblum et al. 2020 with Wong et al. 2020)"
    paper = recipe()

    def conventions(self) -> list[str]:
        loss, who = super().conventions()
        return [loss, f"{who}; a single step from a uniform start"]
