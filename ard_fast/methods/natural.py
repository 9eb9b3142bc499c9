"""Training on clean images only: the network that is not robust, and the second teacher of MTARD and IAD-II."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as tf

from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Method, Network, StepResult
from ard_fast.methods.shared import recipe


@dataclass(eq=False, repr=False, kw_only=True)
class NaturalTraining(Method):
    """CE(S(x), y), averaged over the batch: no attack, no teacher."""

    name = "natural"
    summary = "clean images only: CE(S(x), y)"
    selects_by = "clean"  # its robust accuracy is noise, and another method's clean teacher should be a good one
    paper = recipe()

    label_smoothing: float = 0.0

    def attack(self, student: Network, batch: Batch) -> Inner:
        return Inner()

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(batch.x)
        return StepResult(tf.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing), logits)

    def conventions(self) -> list[str]:
        return ["loss CE(S(x), y), mean over the batch; no attack"]
