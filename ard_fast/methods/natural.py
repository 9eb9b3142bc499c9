"""Training on clean images only: the network that is not robust, and the second teacher of MTARD and IAD-II."""

from __future__ import annotations

import torch.nn.functional as tf

from ard_fast.data import Batch
from ard_fast.methods.base import Inner, Method, MethodContext, Network, StepResult
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec


class NaturalTraining(Method):
    """CE(S(x), y), averaged over the batch: no attack, no teacher."""

    name = "natural"

    def attack(self, student: Network, batch: Batch) -> Inner:
        return Inner()

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(batch.x)
        return StepResult(tf.cross_entropy(logits, batch.y), logits)

    def conventions(self) -> list[str]:
        return ["loss CE(S(x), y), mean over the batch; no attack"]


def _build(settings: FilledSettings, context: MethodContext) -> NaturalTraining:
    return NaturalTraining()


SPEC = MethodSpec(
    summary="clean images only: CE(S(x), y)",
    build=_build,
    defaults={},
    attacks=False,
    selects_by="clean",  # its robust accuracy is noise, and another method's clean teacher should be a good one
    paper={"epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4},
)
