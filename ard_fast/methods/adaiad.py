"""AdaAD with the introspective weights, AdaIAD (Huang et al., CVPR 2023)."""

from __future__ import annotations

from ard_fast.data import Batch
from ard_fast.methods.attack import kl_attack
from ard_fast.methods.base import Inner, MethodContext, Network, Quirk, StepResult
from ard_fast.methods.iad_i import UNTRUSTED_TEACHER, IntrospectiveDistillation
from ard_fast.methods.quirks import UNCLAMPED_NORMAL
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec
from ard_fast.teachers import Teacher


class AdaptiveIntrospectiveDistillation(IntrospectiveDistillation):
    """IAD-I's loss with T(x') for T(x), and AdaAD's x', which attacks KL(T(x') || S(x')) through both networks.

    The teacher's logits at x' are target and trust in one. With T = 30 and the KL divided by B the first term is C
    times ARD's. Against the formula the code gives the teacher's term the weight 1 (`trust_teacher`) and makes two more
    clean forwards of the student, without effect on the loss (`clean_branch`).
    """

    name = "adaiad"
    taught_at = "x'"

    def clean_teachers(self) -> tuple[Teacher, ...]:
        return ()  # at x' only

    def attack(self, student: Network, batch: Batch) -> Inner:
        x_adv = self.inner_attack(student, batch.x, self.teacher.attacked, seed=batch.seed, sample_ids=batch.ids)
        target = self.teacher(x_adv)
        return Inner(x_adv, target, weight=self._trust(target, batch) if self.begun else None)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        if self.clean_branch:
            student(batch.x)
        return super().loss(student, batch, inner)

    def _attack_words(self) -> str:
        return (
            "x' attacks KL(T(x') || S(x')) at temperature 1, gradient through both networks, from noise of "
            "0.001 N(0, 1); teacher, in eval mode, sees x'"
        )


def _build(settings: FilledSettings, context: MethodContext) -> AdaptiveIntrospectiveDistillation:
    return AdaptiveIntrospectiveDistillation(context.teachers["teacher"], kl_attack(settings), settings, context.epochs)


SPEC = MethodSpec(
    summary="AdaIAD: IAD-I with AdaAD's attack and the teacher at x' (Huang et al., CVPR 2023)",
    build=_build,
    defaults={
        "steps": 10,
        "attack_bn": "eval",
        "clamp_start": True,
        "alpha": 1.0,
        "temperature": 30.0,
        "reduction": "batchmean",
        "begin_share": 0.3,
        "trust_power": 0.1,
        "trust_teacher": True,
        "clean_branch": False,
    },
    teachers=("teacher",),
    paper={"student": "resnet18", "epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 5e-4},
    quirks=(
        UNTRUSTED_TEACHER,
        Quirk("two more clean forwards of the student: two batch-norm updates", {"clean_branch": True}),
        UNCLAMPED_NORMAL,
    ),
)
