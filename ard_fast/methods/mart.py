"""MART (Wang, Zou, Yi, Bailey, Ma, Gu; ICLR 2020): misclassification-aware adversarial training."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.data.batches import Batch
from ard_fast.losses import divisor_words
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import UNCLAMPED_NORMAL, recipe


@dataclass(eq=False, repr=False, kw_only=True)
class Mart(PGDMethod):
    """BCE(S(x'), y) + beta KL(S(x) || S(x')) (1 - p_y(x)), with x' attacking CE(S(x'), y) from small normal noise.

    BCE is the cross-entropy and a margin term, see `ard_fast.functional.mart_loss`; the clean images go through the
    student first.
    """

    name = "mart"
    summary = "MART: BCE(S(x'), y) + beta KL(S(x) || S(x')) (1 - p_y(x)) (Wang et al., ICLR 2020)"
    init = "normal"
    paper = recipe(epochs=120, milestones=(75, 90, 100), lr=0.01, weight_decay=3.5e-3, eps=0.031, step_size=0.007)
    quirks = (UNCLAMPED_NORMAL,)

    beta: float = 5.0
    reduction: str = "batchmean"

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
