"""Introspective adversarial distillation with one teacher, IAD-I (Zhu, Yao, Han et al.; ICLR 2022)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as tf
from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks import PGD
from ard_fast.data import Batch
from ard_fast.methods.attack import ce_attack
from ard_fast.methods.base import Inner, Method, MethodContext, Network, Quirk, StepResult
from ard_fast.methods.quirks import RATE_STUCK, TRAIN_MODE_ATTACK, UNCLAMPED_UNIFORM
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec
from ard_fast.methods.trust import teacher_trust, trust_words
from ard_fast.methods.words import kl_words
from ard_fast.teachers import Teacher


class IntrospectiveDistillation(Method):
    """alpha [w T^2 KL(T(x) || S(x')) + (1 - w) KL(S(x) || S(x'))] + (1 - alpha) CE(S(x), y); x' attacks CE(S(x'), y).

    w = p^trust_power with p the teacher's probability of the label at the attacked image. Before the epoch that
    `begin_share` gives, w is 1: the loss is ARD's, and neither the teacher's pass at x' nor, at alpha = 1, the
    student's at x is made. The second KL is at temperature 1; its target S(x) is not detached, as in the code. All
    weights of a batch come from one gather, where the code takes them sample by sample and waits for each.

    Against the formula the code gives the teacher's term the weight 1 (`trust_teacher`) and makes one more clean
    forward of the student, without effect on the loss (`clean_branch`).
    """

    name = "iad-i"
    taught_at = "x"

    def __init__(self, teacher: Teacher, inner_attack: PGD, settings: FilledSettings, epochs: int) -> None:
        self.teacher, self.inner_attack = teacher, inner_attack
        self.alpha, self.temperature, self.reduction = settings.alpha, settings.temperature, settings.reduction
        self.power, self.trust_teacher = settings.trust_power, settings.trust_teacher
        self.clean_branch = settings.clean_branch
        self.begin = round(settings.begin_share * epochs)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        self.begun = epoch >= self.begin

    def clean_teachers(self) -> tuple[Teacher, ...]:
        return (self.teacher,)

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.teacher.clean(batch)
        x_adv = self.inner_attack(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids)
        return Inner(x_adv, target, weight=self._trust(self.teacher(x_adv), batch) if self.begun else None)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        how: dict[str, Any] = {"temperature": self.temperature, "reduction": self.reduction}
        clean = student(batch.x) if self.clean_branch or self.alpha != 1.0 else None
        loss = F.kl_distill_loss(
            logits, known(inner.target), **how, weight=inner.weight if self.trust_teacher else None
        )
        if self.begun:
            own = student(batch.x) if clean is None or self.clean_branch else clean
            loss = loss + F.kl_distill_loss(logits, own, reduction=self.reduction, weight=1.0 - known(inner.weight))
        if self.alpha != 1.0:
            loss = self.alpha * loss + (1.0 - self.alpha) * tf.cross_entropy(known(clean), batch.y)
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        trusted = "w * " if self.trust_teacher else ""
        clean = "" if self.alpha == 1.0 else f" + {1 - self.alpha:.4g} * CE(S(x), y)"
        dead = "; one more clean forward of weight 0, as published" if self.clean_branch else ""
        return [
            f"loss {self.alpha:.4g} * [{trusted}T^2 * KL(T({self.taught_at}) || S(x')) + (1 - w) * KL(S(x) || S(x')) "
            f"at T=1]{clean}, {kl_words(self)}",
            trust_words(self.begin, self.power),
            self._attack_words() + dead,
        ]

    def _attack_words(self) -> str:
        return "x' attacks CE(S(x'), y); teacher, in eval mode, sees x and, for w, x'"

    def _trust(self, logits: Tensor, batch: Batch) -> Tensor:
        return teacher_trust(logits, batch.y, self.power)


def _build(settings: FilledSettings, context: MethodContext) -> IntrospectiveDistillation:
    return IntrospectiveDistillation(context.teachers["teacher"], ce_attack(settings), settings, context.epochs)


UNTRUSTED_TEACHER = Quirk(
    "the teacher's term has the weight 1, where the formula has T_y(x')^beta", {"trust_teacher": False}
)

SPEC = MethodSpec(
    summary="IAD-I: w KL(T(x) || S(x')) + (1 - w) KL(S(x) || S(x')), w = T_y(x')^0.1 (Zhu et al., ICLR 2022)",
    build=_build,
    defaults={
        "steps": 10,
        "attack_bn": "eval",
        "clamp_start": True,
        "alpha": 1.0,
        "temperature": 1.0,
        "reduction": "batchmean",
        "begin_share": 0.3,
        "trust_power": 0.1,
        "trust_teacher": True,
        "clean_branch": False,
    },
    teachers=("teacher",),
    paper={"student": "resnet18", "epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4},
    quirks=(
        UNTRUSTED_TEACHER,
        RATE_STUCK,
        TRAIN_MODE_ATTACK,
        Quirk("one more clean forward of the student: another batch-norm update", {"clean_branch": True}),
        UNCLAMPED_UNIFORM,
    ),
)
