"""Adversarial distillation from a peer tutor, PeerAiD (Jung, Jang, Song, Lee; CVPR 2024, arXiv 2403.06668)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as tf
from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks.model_mode import attack_mode
from ard_fast.attacks.pgd import KLPGD
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import KL_MEAN, UNCLAMPED_NORMAL, Quirk, kl_settings, kl_words, recipe


@dataclass(eq=False, repr=False, kw_only=True)
class PeerDistillation(PGDMethod):
    """A peer P in the teacher's place, trained beside the student on the images that attack the student.

    Student: l1 CE(S(x'), y) + T^2 [l2 KL(P(x') || S(x')) + l3 KL(S(x) || S(x'))], P(x') detached, S(x) not.
    Peer: CE(P(x'), y) + g2 KL(S(x') || P(x')), S(x') detached, at temperature 1.
    x' attacks KL(P(x) || S(x')) at temperature 1, with P in eval mode; P(x') is in train mode. The loss of a step is
    the sum of both.

    l1, l2, l3 and g2 are `label_weight`, `peer_weight`, `self_weight` and `feedback_weight`; the code's scripts have 0,
    1, 1 and 0.1 for CIFAR-10, with g2 = 1 for CIFAR-100, and 0.035, 35, 20 and 100 at T = 1 for TinyImageNet. A forward
    pass whose weight is 0 is not made. Formulas and constants are those of the code, whose student averaged
    over the epochs (SWA) gets the batch-norm statistics of a pass over the clean images; here they are averaged, too.

    In the code S(x') in the peer's loss comes from a forward pass of its own and is not detached, so that g2 KL moves
    the student as well (`joint_loss`).
    """

    name = "peeraid"
    summary = (
        "PeerAiD: distilled from a peer that learns beside it on the same attacked images (Jung et al., CVPR 2024)"
    )
    networks = state = ("peer",)
    attack_class, init = KLPGD, "normal"
    # averaged from the first drop on
    paper = recipe(
        student="resnet18", epochs=300, milestones=(214, 259, 284), averaging="swa", averaging_start_share=214 / 300
    )
    quirks = (
        KL_MEAN,
        Quirk(
            "the peer's loss moves the student, too: its target S(x') is not detached; one more forward of the student",
            {"joint_loss": True},
        ),
        UNCLAMPED_NORMAL,
    )

    label_weight: float = 0.0
    peer_weight: float = 1.0
    self_weight: float = 1.0
    feedback_weight: float = 0.1
    temperature: float = 5.0
    reduction: str = "mean"
    label_smoothing: float = 0.0
    joint_loss: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peer = self.context.networks["peer"]

    def attack(self, student: Network, batch: Batch) -> Inner:
        with torch.no_grad(), attack_mode(self.peer, "eval"):
            target = self.peer(batch.x).float()
        return Inner(self.perturb(student, batch, target), target)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        x_adv, how = known(inner.x_adv), kl_settings(self)
        tutor = self.peer(x_adv).float()
        own = student(x_adv) if self.joint_loss and self.feedback_weight else None
        logits = student(x_adv)
        loss = self.peer_weight * F.kl_distill_loss(logits, tutor.detach(), **how)
        if self.self_weight:
            loss = loss + self.self_weight * F.kl_distill_loss(logits, student(batch.x), **how)
        if self.label_weight:
            loss = loss + self.label_weight * self._entropy(logits, batch.y)
        loss = loss + self._entropy(tutor, batch.y)
        if self.feedback_weight:
            target = logits.detach() if own is None else own
            loss = loss + self.feedback_weight * F.kl_distill_loss(tutor, target, reduction=self.reduction)
        return StepResult(loss, logits)

    def _entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        return tf.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    def conventions(self) -> list[str]:
        label = f"{self.label_weight:g} * CE(S(x'), y) + " if self.label_weight else ""
        feedback = "not detached, from a forward of its own, as published" if self.joint_loss else "detached"
        return [
            f"loss {label}T^2 * [{self.peer_weight:g} * KL(P(x') || S(x')) + {self.self_weight:g} * KL(S(x) || "
            f"S(x'))], S(x) not detached, {kl_words(self)}",
            f"the peer P adds CE(P(x'), y) + {self.feedback_weight:g} * KL(S(x') || P(x')) at T=1, S(x') {feedback}",
            "x' attacks KL(P(x) || S(x')) at temperature 1 from noise of 0.001 N(0, 1), P in eval mode; P(x') in train "
            f"mode; student forwards: x'{', x' * bool(self.self_weight)}",
        ]
