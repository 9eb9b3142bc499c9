"""TRADES (Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan; ICML 2019, arXiv 1901.08573)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks.pgd import KLPGD
from ard_fast.data.batches import Batch
from ard_fast.losses import divisor_words
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import UNCLAMPED_NORMAL, Quirk, recipe, smoothed


@dataclass(eq=False, repr=False, kw_only=True)
class Trades(PGDMethod):
    """CE(S(x), y) + beta KL(S(x) || S(x')), with x' raising KL(S(x) || S(x')); gradients through both networks' rows.

    The clean images go through the student before the adversarial ones, once. The published code sends them through a
    second time afterwards, for the KL alone. Batch norm in train mode gives the same logits and the same gradient both
    times, so all that remains of the second pass is one more update of the running statistics; `repeat_clean` keeps
    that update, without a graph.
    """

    name = "trades"
    summary = "TRADES: CE(S(x), y) + beta KL(S(x) || S(x')) (Zhang et al., ICML 2019)"
    attack_class, init = KLPGD, "normal"
    paper = recipe(epochs=76, milestones=(75,), eps=0.031, step_size=0.007, eval_step_size=0.003)
    quirks = (
        Quirk("clean images twice through the student: a third batch-norm update an iteration", {"repeat_clean": True}),
        UNCLAMPED_NORMAL,
    )

    beta: float = 6.0
    reduction: str = "batchmean"
    repeat_clean: bool = False
    label_smoothing: float = 0.0

    def attack(self, student: Network, batch: Batch) -> Inner:
        return Inner(self.perturb(student, batch))

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        clean = student(batch.x)
        logits = student(known(inner.x_adv))
        if self.repeat_clean:
            with torch.no_grad():
                student(batch.x)
        loss = F.trades_loss(logits, clean_logits=clean, labels=batch.y, beta=self.beta, reduction=self.reduction)
        return StepResult(smoothed(loss, self, clean, batch.y), logits)

    def conventions(self) -> list[str]:
        divisor = divisor_words(self.reduction)
        forwards = "clean forward twice (as published)" if self.repeat_clean else "one clean forward"
        return [
            f"loss CE(S(x), y) + {self.beta:g} * KL(S(x) || S(x')), KL divided by {divisor}, S(x) not detached",
            f"x' attacks KL(S(x) || S(x')) from x + 0.001 N(0, 1); {forwards}",
        ]
