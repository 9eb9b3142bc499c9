"""Introspective adversarial distillation with two teachers, IAD-II (Zhu, Yao, Han et al.; ICLR 2022)."""

from __future__ import annotations

from typing import Any

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks import PGD
from ard_fast.data import Batch
from ard_fast.methods.attack import ce_attack
from ard_fast.methods.base import Inner, Method, MethodContext, Network, StepResult
from ard_fast.methods.quirks import RATE_STUCK, TRAIN_MODE_ATTACK, UNCLAMPED_UNIFORM
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec
from ard_fast.methods.trust import teacher_trust, trust_words
from ard_fast.methods.words import kl_words
from ard_fast.teachers import Teacher


class TwoTeacherIntrospectiveDistillation(Method):
    """a1 [w T^2 KL(T(x') || S(x')) + (1 - w) KL(S(x) || S(x'))] + a2 T^2 KL(T'(x') || S(x')) + the rest CE(S(x'), y).

    a1 and a2 are `alpha` and `alpha2`, the cross-entropy's weight what they leave of 1. T is trained adversarially, T'
    on clean images; both see the attacked images, where x' attacks CE(S(x'), y). w is T's trust as in IAD-I, 1 before
    the epoch that `begin_share` gives; the student's pass at x is made from then on only. The second KL is at
    temperature 1, its target S(x) is not detached.
    """

    name = "iad-ii"

    def __init__(
        self, teacher: Teacher, clean_teacher: Teacher, inner_attack: PGD, settings: FilledSettings, epochs: int
    ) -> None:
        self.teacher, self.clean_teacher, self.inner_attack = teacher, clean_teacher, inner_attack
        self.alpha, self.alpha2 = settings.alpha, settings.alpha2
        if self.alpha + self.alpha2 > 1.0:
            raise ValueError(
                f"alpha2: expected at most 1 - alpha = {1 - self.alpha:g}, as the cross-entropy gets what is left, got "
                f"{self.alpha2:g}"
            )
        self.temperature, self.reduction = settings.temperature, settings.reduction
        self.power, self.begin = settings.trust_power, round(settings.begin_share * epochs)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        self.begun = epoch >= self.begin

    def attack(self, student: Network, batch: Batch) -> Inner:
        x_adv = self.inner_attack(student, batch.x, batch.y, seed=batch.seed, sample_ids=batch.ids)
        target = self.teacher(x_adv)
        weight = teacher_trust(target, batch.y, self.power) if self.begun else None
        return Inner(x_adv, target, self.clean_teacher(x_adv), weight)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        how: dict[str, Any] = {"temperature": self.temperature, "reduction": self.reduction}
        trusted = F.kl_distill_loss(logits, known(inner.target), **how, weight=inner.weight)
        if self.begun:
            own = student(batch.x)
            trusted = trusted + F.kl_distill_loss(
                logits, own, reduction=self.reduction, weight=1.0 - known(inner.weight)
            )
        loss, rest = self.alpha * trusted, 1.0 - self.alpha
        if rest > 0.0:  # the second teacher's KL and the cross-entropy, both of S(x'), are one pass over its logits
            share = self.alpha2 / rest
            other = known(inner.clean_target)
            loss = loss + rest * F.ard_loss(
                logits, teacher_logits=other, student_logits=logits, labels=batch.y, alpha=share, **how
            )
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        return [
            f"loss {self.alpha:.4g} * [w * T^2 * KL(T(x') || S(x')) + (1 - w) * KL(S(x) || S(x')) at T=1] + "
            f"{self.alpha2:.4g} * T^2 * KL(T'(x') || S(x')) + {1 - self.alpha - self.alpha2:.4g} * CE(S(x'), y), "
            f"{kl_words(self)}",
            trust_words(self.begin, self.power),
            "x' attacks CE(S(x'), y); both teachers, T adversarially trained, T' on clean images, see x' in eval mode",
        ]


def _build(settings: FilledSettings, context: MethodContext) -> TwoTeacherIntrospectiveDistillation:
    teachers = context.teachers
    return TwoTeacherIntrospectiveDistillation(
        teachers["teacher"], teachers["clean_teacher"], ce_attack(settings), settings, context.epochs
    )


SPEC = MethodSpec(
    summary="IAD-II: IAD-I with a second, standard teacher and CE, all at x' (Zhu et al., ICLR 2022)",
    build=_build,
    defaults={
        "steps": 10,
        "attack_bn": "eval",
        "clamp_start": True,
        "alpha": 0.5,
        "alpha2": 0.25,
        "temperature": 1.0,
        "reduction": "batchmean",
        "begin_share": 0.2,
        "trust_power": 0.1,
    },
    teachers=("teacher", "clean_teacher"),
    paper={"student": "resnet18", "epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4},
    quirks=(RATE_STUCK, TRAIN_MODE_ATTACK, UNCLAMPED_UNIFORM),
)
