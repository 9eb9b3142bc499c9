"""FGSM-ARD: the ARD loss on examples of a single step from a random start."""

from __future__ import annotations

from ard_fast.losses import ARDLoss
from ard_fast.methods.ard import AdversariallyRobustDistillation
from ard_fast.methods.attack import fgsm_rs_attack
from ard_fast.methods.base import MethodContext
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec


class FGSMARD(AdversariallyRobustDistillation):
    """ARD with the attack of Wong, Rice and Kolter (ICLR 2020): 5 units of the student's forward pass a step instead
    of the 23 of ten attack steps. It is no published method; the ARD paper's own fast form is `fast-ard`.
    """

    name = "fgsm-ard"

    def conventions(self) -> list[str]:
        loss, who = super().conventions()
        return [loss, f"{who}; a single step from a uniform start"]


def _build(settings: FilledSettings, context: MethodContext) -> FGSMARD:
    loss = ARDLoss(alpha=settings.alpha, temperature=settings.temperature, reduction=settings.reduction)
    return FGSMARD(context.teachers["teacher"], fgsm_rs_attack(settings), loss, settings.clean_branch)


SPEC = MethodSpec(
    summary="FGSM-ARD: the ARD loss on FGSM-RS examples (Goldblum et al. 2020 with Wong et al. 2020)",
    build=_build,
    defaults={
        "attack_bn": "train",
        "alpha": 1.0,
        "temperature": 30.0,
        "reduction": "mean",
        "clean_branch": False,
    },
    teachers=("teacher",),
    step_ratio=1.25,
    paper={"epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4},
)
