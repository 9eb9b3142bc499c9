"""N-FGSM training (de Jorge et al.; NeurIPS 2022, arXiv 2202.01181): wide noise, one step, no projection."""

from __future__ import annotations

from ard_fast.attacks import NFGSM
from ard_fast.methods.at import AdversarialTraining
from ard_fast.methods.attack import relative_step
from ard_fast.methods.base import MethodContext
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec


class NoiseFGSMTraining(AdversarialTraining):
    """Cross-entropy on images attacked by N-FGSM, which may lie outside the eps-ball."""

    name = "n-fgsm"

    def __init__(self, inner_attack: NFGSM) -> None:
        super().__init__(inner_attack)
        self.noise = inner_attack.noise

    def conventions(self) -> list[str]:
        return [
            "loss CE(S(x'), y), mean over the batch; x' is one step on CE(S(x'), y) from uniform noise of "
            f"{self.noise:g} eps, not projected onto the ball"
        ]


def _build(settings: FilledSettings, context: MethodContext) -> NoiseFGSMTraining:
    attack = NFGSM(
        eps=settings.eps, noise=settings.noise_ratio, bn=settings.attack_bn, relative_step=relative_step(settings)
    )
    return NoiseFGSMTraining(attack)


SPEC = MethodSpec(
    summary="N-FGSM: CE(S(x'), y), one step from wide noise, no projection (de Jorge et al., NeurIPS 2022)",
    build=_build,
    defaults={"attack_bn": "train", "noise_ratio": 2.0},
    step_ratio=1.0,
    paper={"epochs": 30, "schedule": "cyclic", "lr": 0.2, "weight_decay": 5e-4},
)
