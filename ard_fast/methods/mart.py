"""MART (Wang, Zou, Yi, Bailey, Ma, Gu; ICLR 2020): misclassification-aware adversarial training."""

from __future__ import annotations

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks import PGD
from ard_fast.data import Batch
from ard_fast.losses import divisor_words
from ard_fast.methods.attack import ce_attack
from ard_fast.methods.base import Inner, Method, MethodContext, Network, StepResult
from ard_fast.methods.quirks import UNCLAMPED_NORMAL
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec


class Mart(Method):
    """BCE(S(x'), y) + beta KL(S(x) || S(x')) (1 - p_y(x)), with x' attacking CE(S(x'), y) from small normal noise.

    BCE is the cross-entropy and a margin term, see `ard_fast.functional.mart_loss`; the clean images go through the
    student first.
    """

    name = "mart"

    def __init__(self, inner_attack: PGD, beta: float, reduction: str) -> None:
        self.inner_attack, self.beta, self.reduction = inner_attack, beta, reduction

    def attack(self, student: Network, batch: Batch) -> Inner:
        return Inner(self.inner_attack(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids))

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        clean = student(batch.x)
        logits = student(known(inner.x_adv))
        loss = F.mart_loss(logits, clean_logits=clean, labels=batch.y, beta=self.beta, reduction=self.reduction)
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        divisor = divisor_words(self.reduction)
        return [
            f"loss BCE(S(x'), y) + {self.beta:g} * KL(S(x) || S(x')) (1 - p_y(x)), KL divided by {divisor}",
            "x' attacks CE(S(x'), y) from x + 0.001 N(0, 1)",
        ]


def _build(settings: FilledSettings, context: MethodContext) -> Mart:
    return Mart(ce_attack(settings, init="normal"), settings.beta, settings.reduction)


SPEC = MethodSpec(
    summary="MART: BCE(S(x'), y) + beta KL(S(x) || S(x')) (1 - p_y(x)) (Wang et al., ICLR 2020)",
    build=_build,
    defaults={"steps": 10, "attack_bn": "eval", "clamp_start": True, "beta": 5.0, "reduction": "batchmean"},
    paper={
        "epochs": 120,
        "milestones": (75, 90, 100),
        "lr": 0.01,
        "weight_decay": 3.5e-3,
        "eps": 0.031,
        "step_size": 0.007,
    },
    quirks=(UNCLAMPED_NORMAL,),
)
