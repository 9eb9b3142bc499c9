"""Adaptive adversarial distillation (Huang, Chen, Wang, Lu, Chen, Wu, Xie; CVPR 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks.pgd import KLPGD
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import KL_MEAN, UNCLAMPED_NORMAL, Quirk, kl_settings, kl_words, recipe

if TYPE_CHECKING:
    from ard_fast.teachers.teacher import Teacher


@dataclass(eq=False, repr=False, kw_only=True)
class AdaptiveAdversarialDistillation(PGDMethod):
    """T^2 [alpha KL(T(x') || S(x')) + (1 - alpha) KL(T(x) || S(x))], x' attacking KL(T(x') || S(x')); no label.

    The attack's gradient flows through both networks, so each of its K steps costs a forward and a backward of the
    teacher too; one more teacher forward, at x', makes the target. The attack is at temperature 1.

    At alpha = 1 the clean images go through neither network. The official code runs both: the teacher's pass is
    without effect, the student's, made before the adversarial one, moves batch norm once more (`clean_branch`). It
    divides the KL by B*C for CIFAR-10 and by B for CIFAR-100; as the learning rate belongs to the first, that is the
    default here, and `reduction` the choice.
    """

    name = "adaad"
    summary = "AdaAD: KL(T(x') || S(x')), x' attacks the same through both networks (Huang et al., CVPR 2023)"
    teachers = ("teacher",)
    attack_class, init = KLPGD, "normal"
    paper = recipe(student="resnet18", weight_decay=5e-4)
    quirks = (
        KL_MEAN,
        UNCLAMPED_NORMAL,
        Quirk("clean forward although its loss has weight 0: one more batch-norm update", {"clean_branch": True}),
    )

    alpha: float = 1.0
    temperature: float = 1.0
    reduction: str = "mean"
    clean_branch: bool = False

    def clean_teachers(self) -> tuple[Teacher, ...]:
        return () if self.alpha == 1.0 else (self.teacher,)

    def attack(self, student: Network, batch: Batch) -> Inner:
        x_adv = self.perturb(student, batch, self.teacher.attacked)
        clean_target = None if self.alpha == 1.0 else self.teacher.clean(batch)
        return Inner(x_adv, self.teacher(x_adv), clean_target)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        how = kl_settings(self)
        clean = student(batch.x) if self.clean_branch or self.alpha != 1.0 else None
        logits = student(known(inner.x_adv))
        loss = self.alpha * F.kl_distill_loss(logits, known(inner.target), **how)
        if self.alpha != 1.0:
            loss = loss + (1.0 - self.alpha) * F.kl_distill_loss(known(clean), known(inner.clean_target), **how)
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        clean = "" if self.alpha == 1.0 else f" + {1 - self.alpha:.4g} * KL(T(x) || S(x))"
        if self.alpha != 1.0:
            forwards = "student x, x'; teacher x', x"
        elif self.clean_branch:
            forwards = "student x (weight 0, as published), x'; teacher x'"
        else:
            forwards = "student x'; teacher x'"
        return [
            f"loss T^2 * [{self.alpha:.4g} * KL(T(x') || S(x')){clean}], {kl_words(self)}",
            "x' attacks KL(T(x') || S(x')) at temperature 1, gradient through both networks, teacher in eval mode, "
            f"from noise of 0.001 N(0, 1); then forwards: {forwards}",
        ]
