"""AdaAD with the introspective weights, AdaIAD (Huang et al., CVPR 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.attacks.pgd import KLPGD
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, StepResult
from ard_fast.methods.iad_i import IntrospectiveDistillation
from ard_fast.methods.shared import UNCLAMPED_NORMAL, UNTRUSTED_TEACHER, Quirk, recipe, teacher_trust


@dataclass(eq=False, repr=False, kw_only=True)
class AdaptiveIntrospectiveDistillation(IntrospectiveDistillation):
    """IAD-I's loss with T(x') for T(x), and AdaAD's x', which attacks KL(T(x') || S(x')) through both networks.

    The teacher's logits at x' are target and trust in one. With T = 30 and the KL divided by B the first term is C
    times ARD's. Against the formula the code gives the teacher's term the weight 1 (`trust_teacher`) and makes two more
    clean forwards of the student, without effect on the loss (`clean_branch`).
    """

    name = "adaiad"
    summary = "AdaIAD: IAD-I with AdaAD's attack and the teacher at x' (Huang et al., CVPR 2023)"
    asked_clean = ()  # at x' only
    attack_class, init = KLPGD, "normal"
    paper = recipe(student="resnet18", weight_decay=5e-4)
    quirks = (
        UNTRUSTED_TEACHER,
        Quirk("two more clean forwards of the student: two batch-norm updates", {"clean_branch": True}),
        UNCLAMPED_NORMAL,
    )

    temperature: float = 30.0

    def attack(self, student: Network, batch: Batch) -> Inner:
        x_adv = self.perturb(student, batch, self.teacher.attacked)
        target = self.teacher(x_adv)
        return Inner(x_adv, target, weight=teacher_trust(target, batch.y, self.trust_power) if self.begun else None)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        if self.clean_branch:
            student(batch.x)
        return super().loss(student, batch, inner)

    def conventions(self) -> list[str]:
        return self._conventions(
            "x'",
            "x' attacks KL(T(x') || S(x')) at temperature 1, gradient through both networks, from noise of "
            "0.001 N(0, 1); teacher, in eval mode, sees x'",
        )
