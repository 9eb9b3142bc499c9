"""TRADES (Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan; ICML 2019, arXiv 1901.08573)."""

from __future__ import annotations

import torch

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks import KLPGD
from ard_fast.data import Batch
from ard_fast.losses import divisor_words
from ard_fast.methods.attack import kl_attack
from ard_fast.methods.base import Inner, Method, MethodContext, Network, Quirk, StepResult
from ard_fast.methods.quirks import UNCLAMPED_NORMAL
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec


class Trades(Method):
    """CE(S(x), y) + beta KL(S(x) || S(x')), with x' raising KL(S(x) || S(x')); gradients through both networks' rows.

    The clean images go through the student before the adversarial ones, once. The published code sends them through a
    second time afterwards, for the KL alone. Batch norm in train mode gives the same logits and the same gradient both
    times, so all that remains of the second pass is one more update of the running statistics; `repeat_clean` keeps
    that update, without a graph.
    """

    name = "trades"

    def __init__(self, inner_attack: KLPGD, beta: float, reduction: str, repeat_clean: bool = False) -> None:
        self.inner_attack, self.beta, self.reduction, self.repeat_clean = inner_attack, beta, reduction, repeat_clean

    def attack(self, student: Network, batch: Batch) -> Inner:
        return Inner(self.inner_attack(student, batch.x, seed=batch.seed, sample_ids=batch.ids))

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        clean = student(batch.x)
        logits = student(known(inner.x_adv))
        if self.repeat_clean:
            with torch.no_grad():
                student(batch.x)
        loss = F.trades_loss(logits, clean_logits=clean, labels=batch.y, beta=self.beta, reduction=self.reduction)
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        divisor = divisor_words(self.reduction)
        forwards = "clean forward twice (as published)" if self.repeat_clean else "one clean forward"
        return [
            f"loss CE(S(x), y) + {self.beta:g} * KL(S(x) || S(x')), KL divided by {divisor}, S(x) not detached",
            f"x' attacks KL(S(x) || S(x')) from x + 0.001 N(0, 1); {forwards}",
        ]


def _build(settings: FilledSettings, context: MethodContext) -> Trades:
    return Trades(kl_attack(settings), settings.beta, settings.reduction, settings.repeat_clean)


SPEC = MethodSpec(
    summary="TRADES: CE(S(x), y) + beta KL(S(x) || S(x')) (Zhang et al., ICML 2019)",
    build=_build,
    defaults={
        "steps": 10,
        "attack_bn": "eval",
        "clamp_start": True,
        "beta": 6.0,
        "reduction": "batchmean",
        "repeat_clean": False,
    },
    paper={
        "epochs": 76,
        "milestones": (75,),
        "lr": 0.1,
        "weight_decay": 2e-4,
        "eps": 0.031,
        "step_size": 0.007,
        "eval_step_size": 0.003,
    },
    quirks=(
        Quirk("clean images twice through the student: a third batch-norm update an iteration", {"repeat_clean": True}),
        UNCLAMPED_NORMAL,
    ),
)
