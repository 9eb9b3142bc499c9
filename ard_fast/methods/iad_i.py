"""Introspective adversarial distillation with one teacher, IAD-I (Zhu, Yao, Han et al.; ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as tf

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import (
    RATE_STUCK,
    TRAIN_MODE_ATTACK,
    UNCLAMPED_UNIFORM,
    UNTRUSTED_TEACHER,
    Quirk,
    kl_settings,
    kl_words,
    recipe,
    teacher_trust,
    trust_words,
)


@dataclass(eq=False, repr=False, kw_only=True)
class IntrospectiveDistillation(PGDMethod):
    """alpha [w T^2 KL(T(x) || S(x')) + (1 - w) KL(S(x) || S(x'))] + (1 - alpha) CE(S(x), y); x' attacks CE(S(x'), y).

    w = p^trust_power with p the teacher's probability of the label at the attacked image. Before the epoch that
    `begin_share` gives, w is 1: the loss is ARD's, and neither the teacher's pass at x' nor, at alpha = 1, the
    student's at x is made. The second KL is at temperature 1; its target S(x) is not detached, as in the code. All
    weights of a batch come from one gather, where the code takes them sample by sample and waits for each.

    Against the formula the code gives the teacher's term the weight 1 (`trust_teacher`) and makes one more clean
    forward of the student, without effect on the loss (`clean_branch`).
    """

    name = "iad-i"
    summary = "IAD-I: w KL(T(x) || S(x')) + (1 - w) KL(S(x) || S(x')), w = T_y(x')^0.1 (Zhu et al., ICLR 2022)"
    teachers = ("teacher",)
    asked_clean = ("teacher",)
    paper = recipe(student="resnet18")
    quirks = (
        UNTRUSTED_TEACHER,
        RATE_STUCK,
        TRAIN_MODE_ATTACK,
        Quirk("one more clean forward of the student: another batch-norm update", {"clean_branch": True}),
        UNCLAMPED_UNIFORM,
    )

    alpha: float = 1.0
    temperature: float = 1.0
    reduction: str = "batchmean"
    begin_share: float = 0.3
    trust_power: float = 0.1
    trust_teacher: bool = True
    clean_branch: bool = False
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begin = round(self.begin_share * self.context.epochs)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        self.begun = epoch >= self.begin

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.teacher.clean(batch)
        x_adv = self.perturb(student, batch, batch.y)
        trust = teacher_trust(self.teacher(x_adv), batch.y, self.trust_power) if self.begun else None
        return Inner(x_adv, target, weight=trust)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        clean = student(batch.x) if self.clean_branch or self.alpha != 1.0 else None
        weight = inner.weight if self.trust_teacher else None
        loss = F.kl_distill_loss(logits, known(inner.target), **kl_settings(self), weight=weight)
        if self.begun:
            own = student(batch.x) if clean is None or self.clean_branch else clean
            loss = loss + F.kl_distill_loss(logits, own, reduction=self.reduction, weight=1.0 - known(inner.weight))
        if self.alpha != 1.0:
            entropy = tf.cross_entropy(known(clean), batch.y, label_smoothing=self.label_smoothing)
            loss = self.alpha * loss + (1.0 - self.alpha) * entropy
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        return self._conventions("x", "x' attacks CE(S(x'), y); teacher, in eval mode, sees x and, for w, x'")

    def _conventions(self, teacher_sees: str, attack: str) -> list[str]:
        trusted = "w * " if self.trust_teacher else ""
        clean = "" if self.alpha == 1.0 else f" + {1 - self.alpha:.4g} * CE(S(x), y)"
        dead = "; one more clean forward of weight 0, as published" if self.clean_branch else ""
        return [
            f"loss {self.alpha:.4g} * [{trusted}T^2 * KL(T({teacher_sees}) || S(x')) + (1 - w) * KL(S(x) || S(x')) "
            f"at T=1]{clean}, {kl_words(self)}",
            trust_words(self.begin, self.trust_power),
            attack + dead,
        ]
