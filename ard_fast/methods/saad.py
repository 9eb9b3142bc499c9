"""Sample-wise adaptive adversarial distillation, SAAD (Lee, Chung; TMLR 2026, arXiv 2512.10275)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ard_fast.attacks.backward import backward
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, StepResult
from ard_fast.methods.igdm import GradientMatching, opposite
from ard_fast.methods.shared import UNCLAMPED_NORMAL, Quirk, recipe


class FirstOrderTeacher(nn.Module):
    """A teacher near the images of one batch: its logits at x, the true class's moved by its gradient's share.

    One forward and one backward of the network; at other images it costs one product.

    Args:
        network: gives logits, in eval mode.
        x: images `[B, ...]`.
        y: int64 `[B]`.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> None:
        super().__init__()
        self.x, self.column = x, y[:, None]
        with torch.enable_grad():
            probe = x.detach().requires_grad_()
            logits = network(probe).float()
            self.gradient = backward([logits.gather(1, self.column).sum()], probe)
        self.logits = logits.detach()

    def forward(self, x_adv: Tensor) -> Tensor:
        """Logits `[B, C]`, differentiable in `x_adv`."""
        change = ((x_adv - self.x) * self.gradient).flatten(1).sum(1)
        return self.logits.scatter_add(1, self.column, change[:, None])


@dataclass(eq=False, repr=False, kw_only=True)
class SampleWiseDistillation(GradientMatching):
    """IGDM's loss, each sample's weighted by w = s (H - min H), H the entropy of the teacher at x', min over the batch.

    A teacher that is sure of an attacked image is one the attack does not carry over to, and such images are of little
    use: the surest of a batch has the weight 0. s is `entropy_scale`; the weights have no gradient and are not
    normalised. x' attacks KL(T~(x') || S(x')), T~ the teacher's logits at x with the true class's moved to first order,
    gradient through both: one teacher gradient a batch where AdaAD takes one in each step.

    The code has a further term, beta (1 - w~) KL(T(x) || S(x)), which it runs at beta = 0; the term is left out, but
    its clean forward of the student moves batch norm once more (`clean_branch`).
    """

    name = "saad"
    summary = "SAAD: IGDM's loss weighted by the teacher's entropy, first-order teacher in the attack (Lee, Chung 2026)"
    whole_batch = True
    # averaged from the 95th epoch on
    paper = recipe(student="resnet18", averaging="swa", averaging_start_share=0.47)
    quirks = (
        Quirk(
            "clean forward of the student for a term of weight 0: one more batch-norm update", {"clean_branch": True}
        ),
        UNCLAMPED_NORMAL,
    )

    entropy_scale: float = 5.0
    clean_branch: bool = False

    def attack(self, student: Network, batch: Batch) -> Inner:
        x_adv = self.perturb(student, batch, FirstOrderTeacher(self.teacher.attacked, batch.x, batch.y))
        target = self.teacher(x_adv)
        entropy = torch.special.entr(torch.softmax(target, 1)).sum(1)
        weight = self.entropy_scale * (entropy - self.context.all_min(entropy.min()))
        return Inner(x_adv, target, self.teacher(opposite(batch, x_adv)), weight)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        result = super().loss(student, batch, inner)
        if self.clean_branch:
            student(batch.x)
        return result

    def conventions(self) -> list[str]:
        dead = "; one clean forward of the student of weight 0, as published" if self.clean_branch else ""
        return self._conventions(
            f"{self.entropy_scale:g} * (H(T(x+d)) - min H) * ",
            "x+d attacks KL(T~ || S(x+d)) at temperature 1, T~: T(x) with the true class's logit moved to first order, "
            f"by one teacher gradient a batch{dead}",
        )
