"""What several methods share: training recipes and quirks of the papers, sums by class, trust in a teacher, phrases."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as tf
from torch import Tensor

from ard_fast.losses import ARDLoss, divisor_words


@dataclass(frozen=True)
class Quirk:
    """A departure of a published code from its formulas, or from good practice, that changes results.

    Attributes:
        text: for people.
        settings: what reproduces it: fields of the run's configuration.
    """

    text: str
    settings: Mapping[str, object]


def recipe(**changes: Any) -> dict[str, Any]:
    """A paper's training recipe on CIFAR-10, in fields of a run's configuration: ARD's with `changes`; None unsets."""
    ard = {"epochs": 200, "milestones": (100, 150), "lr": 0.1, "weight_decay": 2e-4}
    return {key: value for key, value in {**ard, **changes}.items() if value is not None}


RSLAD_RECIPE = recipe(student="resnet18", epochs=300, milestones=(215, 260, 285))

RATE_STUCK = Quirk(
    "learning rate: every drop multiplies the initial rate, so 0.1 becomes 0.01 at the first milestone and stays",
    {"schedule": "ard"},
)
UNCLAMPED_UNIFORM = Quirk("the random start is not clamped to [0, 1]", {"clamp_start": False})
UNCLAMPED_NORMAL = Quirk("the attack's start, x + 0.001 N(0, 1), is not clamped to [0, 1]", {"clamp_start": False})
TRAIN_MODE_ATTACK = Quirk(
    "batch norm in train mode inside the attack: each of its forwards updates the running statistics",
    {"attack_bn": "train"},
)
KL_MEAN = Quirk(
    "KL reduction 'mean': divided by batch x classes, so the gradient is C times smaller", {"reduction": "mean"}
)
UNTRUSTED_TEACHER = Quirk(
    "the teacher's term has the weight 1, where the formula has T_y(x')^beta", {"trust_teacher": False}
)
ARD_CODE_QUIRKS = (
    KL_MEAN,
    RATE_STUCK,
    Quirk(
        "batch norm in train mode inside the attack: with 10 steps 12 updates of the running statistics an iteration",
        {"attack_bn": "train"},
    ),
    Quirk("clean forward although its loss has weight 0: the 12th update", {"clean_branch": True}),
    UNCLAMPED_UNIFORM,
)


class Distils(Protocol):
    """A method whose KL has a temperature and a reduction."""

    @property
    def temperature(self) -> float: ...
    @property
    def reduction(self) -> str: ...


def kl_settings(method: Distils) -> dict[str, Any]:
    """The arguments that a method's KL takes beside logits."""
    return {"temperature": method.temperature, "reduction": method.reduction}


def kl_words(method: Distils) -> str:
    """The temperature and the divisor of a method's KL."""
    return f"T={method.temperature:g}, KL divided by {divisor_words(method.reduction)}"


def ard_words(method: Any, distilled: str = "S(x')") -> str:
    """ARD's loss with every convention named; `distilled` are the logits in the KL."""
    return f"loss {ARDLoss(method.alpha, method.temperature, method.reduction).describe(distilled)}"


def teacher_trust(logits: Tensor, labels: Tensor, power: float) -> Tensor:
    """w = p^power, float32 `[B]` without a gradient: the weight of the teacher's term; 1 - w is the student's own.

    How far a teacher is to be trusted on each image (Zhu et al., ICLR 2022).

    Args:
        logits: `[B, C]` of the teacher at the attacked images.
        labels: int64 `[B]`; p is the teacher's probability of the label.
        power: exponent, beta in the paper; 0 trusts the teacher throughout.
    """
    with torch.no_grad():
        return (power * torch.log_softmax(logits.float(), 1).gather(1, labels[:, None])[:, 0]).exp()


def trust_words(begin: int, power: float) -> str:
    """When the weights begin, in words."""
    before = f"before epoch {begin + 1} w = 1; then w = " if begin else "w = "
    return f"{before}p^{power:g}, p the teacher's probability of y at x'"


def smoothed(
    loss: Tensor, method: Any, logits: Tensor | None, labels: Tensor, share: float = 1.0, weight: Tensor | None = None
) -> Tensor:
    """A loss with the labels of its cross-entropy smoothed by the method's `label_smoothing`, s.

    CE((1 - s) y + s / C) = CE(y) + s (z_y - mean z), so a fused loss stays as it is.

    Args:
        loss: mean over the batch, with the cross-entropy at labels.
        method: has `label_smoothing`.
        logits: z `[B, C]` of the cross-entropy; None where it has no share.
        labels: int64 `[B]`.
        share: the cross-entropy's factor in the loss.
        weight: `[B]`, a constant factor of each sample.
    """
    if logits is None or share <= 0.0 or not method.label_smoothing:
        return loss
    rows = logits.gather(1, labels[:, None])[:, 0] - logits.mean(1)
    return loss + share * method.label_smoothing * (rows if weight is None else rows * weight).mean()


def sums_by_class(rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sums of `rows` `[K, B]` over the samples of each class: float64 `[K + 1, C]`, the classes' counts last.

    A product with the labels' indicator: the order of summation is fixed, on a GPU too, and nothing waits for it.
    """
    # not one_hot, which looks at the labels on a CPU and so cannot be part of a recorded step
    indicator = (labels[:, None] == torch.arange(num_classes, device=labels.device)).double()
    counted = tf.pad(rows.detach().double(), (0, 0, 0, 1), value=1.0)
    return counted @ indicator
