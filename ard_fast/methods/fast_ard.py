"""Fast-ARD: ARD by free adversarial training (Goldblum et al., AAAI 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks.base import backward
from ard_fast.data import Batch
from ard_fast.functional.gradients import one_scale
from ard_fast.losses import ARDLoss
from ard_fast.methods.base import Inner, Method, MethodContext, Network, StepResult
from ard_fast.methods.perturbation import CarriedPerturbation, carried_perturbation
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec
from ard_fast.teachers import Teacher


class FastARD(Method):
    """The ARD loss at x + delta, m updates on each batch, delta kept between replays and batches as in free training.

    The paper's text leaves open which loss delta ascends. `delta_gradient`:

    - "ce": CE(S(x + delta), y), the inner problem of ARD, on the logits of the same forward pass. The operator gives
      its gradient at the logits; from there one more backward pass, to the pixels only, costs a replay about a third
      more (4 units of a forward pass instead of 3).
    - "kd": the ARD loss itself. Its own backward pass gives the gradient, at no cost.

    The teacher sees the clean images, once for all replays of a batch. At alpha = 1 the clean images do not go through
    the student.
    """

    name = "fast-ard"

    def __init__(
        self, teacher: Teacher, perturbation: CarriedPerturbation, loss: ARDLoss, replays: int, delta_gradient: str
    ) -> None:
        self.teacher, self.perturbation, self.outer = teacher, perturbation, loss
        self.replays, self.delta_gradient = replays, delta_gradient
        self._taught: tuple[Batch, Tensor] | None = None

    def clean_teachers(self) -> tuple[Teacher, ...]:
        return (self.teacher,)

    def attack(self, student: Network, batch: Batch) -> Inner:
        if self._taught is None or self._taught[0] is not batch:
            self._taught = batch, self.teacher.clean(batch)
        delta = self.perturbation.at(batch)
        return Inner(x_adv=(batch.x + delta).clamp(0.0, 1.0), target=self._taught[1], delta=delta)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        if self.delta_gradient == "ce":
            # One factor for all rows: the student is in train mode, where images see one another.
            at_logits, scale = F.attack_gradient(logits, batch.y, loss="ce", scaled=True)
            at_logits = one_scale(scale, at_logits)[0]
            inner.record = backward([logits], known(inner.delta), [at_logits], retain_graph=True)
        clean = student(batch.x) if self.outer.alpha != 1.0 else None
        loss = self.outer(logits, teacher_logits=known(inner.target), student_logits=clean, labels=batch.y)
        return StepResult(loss, logits)

    def after_backward(self, batch: Batch, inner: Inner) -> None:
        self.perturbation.move(
            batch,
            known(inner.delta),
            known(known(inner.delta).grad) if self.delta_gradient == "kd" else known(inner.record),
        )

    def state_dict(self) -> dict[str, Tensor]:
        return self.perturbation.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.perturbation.load_state_dict(state)

    def conventions(self) -> list[str]:
        ascends = "CE(S(x'), y)" if self.delta_gradient == "ce" else "the loss itself"
        return [
            f"loss {self.outer.describe()}; x' = x + delta; {self.replays} updates on each batch",
            f"teacher sees x, eval mode, once a batch; delta ascends {ascends} and is kept from batch to batch",
        ]


def _build(settings: FilledSettings, context: MethodContext) -> FastARD:
    return FastARD(
        context.teachers["teacher"],
        carried_perturbation(settings, context),
        ARDLoss(alpha=settings.alpha, temperature=settings.temperature, reduction=settings.reduction),
        settings.replays,
        settings.delta_gradient,
    )


SPEC = MethodSpec(
    summary="Fast-ARD: the ARD loss by free adversarial training (Goldblum et al., AAAI 2020)",
    build=_build,
    defaults={
        "replays": 4,
        "delta_gradient": "ce",
        "alpha": 1.0,
        "temperature": 30.0,
        "reduction": "mean",
    },
    teachers=("teacher",),
    step_ratio=1.0,
    whole_batch=True,
    paper={"epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4},
)
