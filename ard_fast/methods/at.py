"""Plain adversarial training (Madry et al. 2018)."""

from __future__ import annotations

import torch.nn.functional as tf

from ard_fast._typing import known
from ard_fast.attacks import PGD
from ard_fast.data import Batch
from ard_fast.methods.attack import ce_attack
from ard_fast.methods.base import Inner, Method, MethodContext, Network, StepResult
from ard_fast.methods.quirks import TRAIN_MODE_ATTACK
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec


class AdversarialTraining(Method):
    """Cross-entropy on images attacked at their own label: CE(S(x'), y), averaged over the batch."""

    name = "at"

    def __init__(self, inner_attack: PGD) -> None:
        self.inner_attack = inner_attack

    def attack(self, student: Network, batch: Batch) -> Inner:
        return Inner(self.inner_attack(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids))

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        return StepResult(tf.cross_entropy(logits, batch.y), logits)

    def conventions(self) -> list[str]:
        return ["loss CE(S(x'), y), mean over the batch; x' attacks CE(S(x'), y)"]


def _build(settings: FilledSettings, context: MethodContext) -> AdversarialTraining:
    return AdversarialTraining(ce_attack(settings))


SPEC = MethodSpec(
    summary="PGD adversarial training: CE(S(x'), y) (Madry et al., ICLR 2018)",
    build=_build,
    defaults={"steps": 10, "attack_bn": "eval", "clamp_start": True},
    paper={"epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4},
    quirks=(TRAIN_MODE_ATTACK,),
)
