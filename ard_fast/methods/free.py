"""Free adversarial training (Shafahi et al.; NeurIPS 2019, arXiv 1904.12843): one backward pass for both."""

from __future__ import annotations

from collections.abc import Mapping

import torch.nn.functional as tf
from torch import Tensor

from ard_fast._typing import known
from ard_fast.data import Batch
from ard_fast.methods.base import Inner, Method, MethodContext, Network, StepResult
from ard_fast.methods.perturbation import CarriedPerturbation, carried_perturbation
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec


class FreeAdversarialTraining(Method):
    """CE(S(x + delta), y), m updates on each batch, each of which moves the weights and delta by one backward pass.

    delta is kept between the m replays and between batches (`CarriedPerturbation`); x + delta is clamped to [0, 1].
    Where the clamp holds a pixel its gradient is zero and delta stays, as in the published code. The student is in
    train mode throughout: one batch-norm update a replay.
    """

    name = "free"

    def __init__(self, perturbation: CarriedPerturbation, replays: int) -> None:
        self.perturbation, self.replays = perturbation, replays

    def attack(self, student: Network, batch: Batch) -> Inner:
        delta = self.perturbation.at(batch)
        return Inner(x_adv=(batch.x + delta).clamp(0.0, 1.0), delta=delta)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        return StepResult(tf.cross_entropy(logits, batch.y), logits)

    def after_backward(self, batch: Batch, inner: Inner) -> None:
        self.perturbation.move(batch, known(inner.delta), known(known(inner.delta).grad))

    def state_dict(self) -> dict[str, Tensor]:
        return self.perturbation.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.perturbation.load_state_dict(state)

    def conventions(self) -> list[str]:
        return [
            f"loss CE(S(x + delta), y), mean over the batch; {self.replays} updates on each batch",
            "each update's backward pass also moves delta, which is kept from batch to batch",
        ]


def _build(settings: FilledSettings, context: MethodContext) -> FreeAdversarialTraining:
    return FreeAdversarialTraining(carried_perturbation(settings, context), settings.replays)


SPEC = MethodSpec(
    summary="free adversarial training: m updates a batch, weights and delta by one backward (Shafahi et al., 2019)",
    build=_build,
    defaults={"replays": 8},
    step_ratio=1.0,
    whole_batch=True,
    # 80,000 updates in batches of 128, with drops at half and three quarters.
    paper={"epochs": 205, "milestones": (102, 154), "lr": 0.1, "weight_decay": 2e-4},
)
