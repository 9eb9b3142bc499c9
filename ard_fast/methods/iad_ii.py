"""Introspective adversarial distillation with two teachers, IAD-II (Zhu, Yao, Han et al.; ICLR 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import (
    RATE_STUCK,
    TRAIN_MODE_ATTACK,
    UNCLAMPED_UNIFORM,
    kl_settings,
    kl_words,
    recipe,
    smoothed,
    teacher_trust,
    trust_words,
)


@dataclass(eq=False, repr=False, kw_only=True)
class TwoTeacherIntrospectiveDistillation(PGDMethod):
    """a1 [w T^2 KL(T(x') || S(x')) + (1 - w) KL(S(x) || S(x'))] + a2 T^2 KL(T'(x') || S(x')) + the rest CE(S(x'), y).

    a1 and a2 are `alpha` and `alpha2`, the cross-entropy's weight what they leave of 1. T is trained adversarially, T'
    on clean images; both see the attacked images, where x' attacks CE(S(x'), y). w is T's trust as in IAD-I, 1 before
    the epoch that `begin_share` gives; the student's pass at x is made from then on only. The second KL is at
    temperature 1, its target S(x) is not detached.
    """

    name = "iad-ii"
    summary = "IAD-II: IAD-I with a second, standard teacher and CE, all at x' (Zhu et al., ICLR 2022)"
    teachers = ("teacher", "clean_teacher")
    paper = recipe(student="resnet18")
    quirks = (RATE_STUCK, TRAIN_MODE_ATTACK, UNCLAMPED_UNIFORM)

    alpha: float = 0.5
    alpha2: float = 0.25
    temperature: float = 1.0
    reduction: str = "batchmean"
    begin_share: float = 0.2
    trust_power: float = 0.1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha + self.alpha2 > 1.0:
            raise ValueError(
                f"alpha2: expected at most 1 - alpha = {1 - self.alpha:g}, as the cross-entropy gets what is left, got "
                f"{self.alpha2:g}"
            )
        self.begin = round(self.begin_share * self.context.epochs)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        self.begun = epoch >= self.begin

    def attack(self, student: Network, batch: Batch) -> Inner:
        x_adv = self.perturb(student, batch, batch.y)
        target = self.teacher(x_adv)
        weight = teacher_trust(target, batch.y, self.trust_power) if self.begun else None
        return Inner(x_adv, target, self.clean_teacher(x_adv), weight)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits, how = student(known(inner.x_adv)), kl_settings(self)
        trusted = F.kl_distill_loss(logits, known(inner.target), **how, weight=inner.weight)
        if self.begun:
            distrust = 1.0 - known(inner.weight)
            trusted = trusted + F.kl_distill_loss(logits, student(batch.x), reduction=self.reduction, weight=distrust)
        loss, rest = self.alpha * trusted, 1.0 - self.alpha
        if rest > 0.0:  # the second teacher's KL and the cross-entropy, both of S(x'), are one pass over its logits
            share = self.alpha2 / rest
            other = known(inner.clean_target)
            loss = loss + rest * F.ard_loss(
                logits, teacher_logits=other, student_logits=logits, labels=batch.y, alpha=share, **how
            )
        return StepResult(smoothed(loss, self, logits, batch.y, rest - self.alpha2), logits)

    def conventions(self) -> list[str]:
        return [
            f"loss {self.alpha:.4g} * [w * T^2 * KL(T(x') || S(x')) + (1 - w) * KL(S(x) || S(x')) at T=1] + "
            f"{self.alpha2:.4g} * T^2 * KL(T'(x') || S(x')) + {1 - self.alpha - self.alpha2:.4g} * CE(S(x'), y), "
            f"{kl_words(self)}",
            trust_words(self.begin, self.trust_power),
            "x' attacks CE(S(x'), y); both teachers, T adversarially trained, T' on clean images, see x' in eval mode",
        ]
