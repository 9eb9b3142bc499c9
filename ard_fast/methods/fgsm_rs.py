"""Fast adversarial training (Wong, Rice, Kolter; ICLR 2020, arXiv 2001.03994): one step from a random start."""

from __future__ import annotations

from ard_fast.methods.at import AdversarialTraining
from ard_fast.methods.attack import fgsm_rs_attack
from ard_fast.methods.base import MethodContext
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec


class FastAdversarialTraining(AdversarialTraining):
    """Cross-entropy on images attacked by FGSM-RS: uniform start, one step, projection."""

    name = "fgsm-rs"

    def conventions(self) -> list[str]:
        return ["loss CE(S(x'), y), mean over the batch; x' is one step on CE(S(x'), y) from a uniform start"]


def _build(settings: FilledSettings, context: MethodContext) -> FastAdversarialTraining:
    return FastAdversarialTraining(fgsm_rs_attack(settings))


SPEC = MethodSpec(
    summary="FGSM-RS: CE(S(x'), y), one step from a random start (Wong et al., ICLR 2020)",
    build=_build,
    defaults={"attack_bn": "train"},
    step_ratio=1.25,
    paper={"epochs": 15, "schedule": "cyclic", "lr": 0.2, "weight_decay": 5e-4},
)
