"""Annealing self-distillation rectification, ADR (Wu, Wang, Chen; ICLR 2024, arXiv 2305.12118)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as tf
from torch import Tensor, nn

from ard_fast._typing import known
from ard_fast.attacks.pgd import KLPGD
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import TRAIN_MODE_ATTACK, recipe
from ard_fast.models.trial import frozen


@dataclass(eq=False, repr=False, kw_only=True)
class SelfDistillationRectification(PGDMethod):
    """CE(S(x'), q), x' attacking the same, with soft labels q from E, the moving average of the student's weights.

    p = softmax(E(x) / t) in eval mode, and q = l p + (1 - l) y with l = clip(s - (max p - p_y), 0, 1) for each image:
    the further p is from the label, the less it counts, so that the label keeps the largest entry of q. Over the
    training t falls and s rises along half a cosine: once an epoch, to the value of its middle; in the code each step.

    After each update E <- d E + (1 - d) S, batch-norm statistics too, from the student's first weights on. The paper's
    ADR + WA validates and keeps E itself: `--ema` with the same decay.

    The paper has four constants for each network and data set; these are ResNet-18's on CIFAR-10. With AWP of 0.005
    its temperatures are 2.5 to 1.5 and its shares 0.7 to 0.85.

    State: E, on the device, the same in every process.
    """

    name = "adr"
    summary = "ADR: CE(S(x'), q), labels q softened by the moving average of S itself (Wu et al., ICLR 2024)"
    state = ("average",)
    copies_student = True
    attack_class, init = KLPGD, "uniform"  # the gradient of the KL from q is that of the cross-entropy at q
    paper = recipe(student="resnet18", weight_decay=5e-4, nesterov=True)
    quirks = (TRAIN_MODE_ATTACK,)

    mean_teacher_decay: float = 0.995
    first_temperature: float = 2.5
    last_temperature: float = 2.0
    first_soft_share: float = 0.7
    last_soft_share: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        self.average = frozen(known(self.context.copy_student)())
        self.annealed = torch.zeros(2, device=self.context.device)  # t and s
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        left = (1.0 + math.cos(math.pi * (epoch + 0.5) / self.context.epochs)) / 2.0
        ends = ((self.first_temperature, self.last_temperature), (self.first_soft_share, self.last_soft_share))
        for value, (first, last) in zip(self.annealed, ends, strict=True):
            value.fill_(last + (first - last) * left)

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.soft_labels(batch).log()
        return Inner(self.perturb(student, batch, target), target)

    def soft_labels(self, batch: Batch) -> Tensor:
        """q, float32 `[B, C]`, every entry above 0."""
        temperature, share = self.annealed
        with torch.no_grad():
            soft = torch.softmax(self.average(batch.x).float() / temperature, 1)
            column = batch.y[:, None]
            share = (share - (soft.amax(1, keepdim=True) - soft.gather(1, column))).clamp(0.0, 1.0)
            labels = (share * soft).scatter_add(1, column, 1.0 - share)
            return labels.clamp_min(torch.finfo(labels.dtype).tiny)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        return StepResult(tf.cross_entropy(logits, known(inner.target).exp()), logits)

    @torch.no_grad()
    def after_update(self, student: nn.Module) -> None:
        # Of a batch norm's counter E, in eval mode, makes no use.
        pairs = zip(self.average.state_dict().values(), student.state_dict().values(), strict=True)
        means, weights = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(means, weights, 1.0 - self.mean_teacher_decay)

    def conventions(self) -> list[str]:
        return [
            "loss CE(S(x'), q), mean over the batch; x' attacks the same, from uniform noise in the ball",
            "q = l p + (1 - l) y, l = clip(s - (max p - p_y), 0, 1), p = softmax(E(x) / t), "
            f"t {self.first_temperature:g} to {self.last_temperature:g}, s {self.first_soft_share:g} to "
            f"{self.last_soft_share:g} along half a cosine, once an epoch",
            f"E: moving average of the student's weights and statistics with decay {self.mean_teacher_decay:g}, in "
            "eval mode, kept in the training state",
        ]
