"""Fast-ARD: ARD by free adversarial training (Goldblum et al., AAAI 2020, algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks.backward import backward
from ard_fast.data.batches import Batch
from ard_fast.functional.gradients import one_scale
from ard_fast.methods.base import Inner, Network, StepResult
from ard_fast.methods.free import FreeAdversarialTraining
from ard_fast.methods.shared import ard_words, kl_settings, recipe, smoothed


@dataclass(eq=False, repr=False, kw_only=True)
class FastARD(FreeAdversarialTraining):
    """The ARD loss at x + delta, m updates on each batch, delta kept from update to update as in free training.

    The paper's text leaves open which loss delta ascends. `delta_gradient`:

    - "ce": CE(S(x + delta), y), the inner problem of ARD, on the logits of the same forward pass. The operator gives
      its gradient at the logits; from there one more backward pass, to the pixels only, costs an update about a third
      more (4 units of a forward pass instead of 3).
    - "kd": the ARD loss itself. Its own backward pass gives the gradient, at no cost.

    The teacher sees the clean images, once for all updates on a batch. At alpha = 1 the clean images do not go through
    the student.
    """

    name = "fast-ard"
    summary = "Fast-ARD: the ARD loss by free adversarial training (Goldblum et al., AAAI 2020)"
    teachers = ("teacher",)
    asked_clean = ("teacher",)
    paper = recipe()
    quirks = ()  # of a code that was not published

    replays: int = 4
    delta_gradient: str = "ce"
    alpha: float = 1.0
    temperature: float = 30.0
    reduction: str = "mean"
    _teacher_logits: tuple[Batch, Tensor] | None = field(default=None, init=False)

    def attack(self, student: Network, batch: Batch) -> Inner:
        if self._teacher_logits is None or self._teacher_logits[0] is not batch:
            self._teacher_logits = batch, self.teacher.clean(batch)
        inner = super().attack(student, batch)
        inner.target = self._teacher_logits[1]
        return inner

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        if self.delta_gradient == "ce":
            # One factor for all rows: the student is in train mode, where images see one another.
            at_logits, scale = F.attack_gradient(logits, batch.y, loss="ce", scaled=True)
            at_logits = one_scale(scale, at_logits)[0]
            inner.record = backward([logits], known(inner.delta), [at_logits], retain_graph=True)
        clean = student(batch.x) if self.alpha != 1.0 else None
        target, how = known(inner.target), kl_settings(self)
        loss = F.ard_loss(logits, teacher_logits=target, student_logits=clean, labels=batch.y, alpha=self.alpha, **how)
        return StepResult(smoothed(loss, self, clean, batch.y, 1.0 - self.alpha), logits)

    def after_backward(self, batch: Batch, inner: Inner) -> None:
        delta = known(inner.delta)
        self.move(batch, delta, known(delta.grad if self.delta_gradient == "kd" else inner.record))

    def conventions(self) -> list[str]:
        ascends = "CE(S(x'), y)" if self.delta_gradient == "ce" else "the loss itself"
        return [
            f"{ard_words(self)}; x' = x + delta; {self.replays} updates on each batch",
            f"teacher sees x, eval mode, once a batch; delta ascends {ascends} and is kept from batch to batch; "
            f"{self.clamp_words()}",
        ]
