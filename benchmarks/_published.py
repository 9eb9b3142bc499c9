"""One training iteration of Adversarially Robust Distillation as its published code does it, in plain torch.

Transcribed in our words from the official code of Goldblum, Fowl, Feizi and Goldstein (AAAI 2020). What it does and a
leaner form would not:

* the student is in train mode inside the attack: batch statistics, and running ones that every forward pass moves;
* the clean images go through the student, forward and backward, for a cross-entropy that alpha = 1 multiplies by zero;
* the teacher is asked anew in every iteration, in float32, by its plain network;
* every expression is a handful of eager operations, one result each.

It is given what it does not need to pay for here: its images lie on the device, augmented (the code's own workers
decode and crop them with PIL), the loss is not fetched to the host after every step, as the code does to print it, and
`DataParallel`, which does nothing with one GPU, is left out. All of this is in its favour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import torch
import torch.nn.functional as tf
from torch import Tensor, nn

from ard_fast._devices import training_arithmetic
from ard_fast.data import Batch

Noise = Callable[[Batch], Tensor]
Part = tuple[object, str, str]
"""An object, the attribute of it that is called, and which share of the iteration that call is."""


@dataclass(frozen=True)
class Recipe:
    """The published constants; pixels in [0, 1]."""

    eps: float = 8 / 255
    step_size: float = 2 / 255
    steps: int = 10
    alpha: float = 1.0
    temperature: float = 30.0
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 2e-4


def uniform_noise(x: Tensor, eps: float) -> Tensor:
    """Noise like `x`, uniform in [-eps, eps]."""
    return torch.zeros_like(x).uniform_(-eps, eps)


def ascend(x_adv: Tensor, grad: Tensor, x: Tensor, eps: float, step_size: float) -> Tensor:
    """A signed step, projected onto the ball and clamped; all images `[B, C, H, W]`."""
    x_adv = x_adv.detach() + step_size * torch.sign(grad.detach())
    x_adv = torch.min(torch.max(x_adv, x - eps), x + eps)
    return torch.clamp(x_adv, 0.0, 1.0)


def published_pgd(
    network: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    noise: Tensor,
    move: Callable[..., Tensor] = ascend,
) -> Tensor:
    """Adversarial images `[B, C, H, W]` for images in [0, 1] and labels `[B]`; the noisy start is not clamped."""
    x_adv = x.detach() + noise
    for _ in range(recipe.steps):
        x_adv.requires_grad_()
        loss = tf.cross_entropy(network(x_adv), y, reduction="sum")
        grad = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = move(x_adv, grad, x, recipe.eps, recipe.step_size)
    return x_adv


def distillation(adv: Tensor, target: Tensor, recipe: Recipe) -> Tensor:
    """alpha T^2 KL(target^T || adv^T), divided by B * C as the default of `nn.KLDivLoss`; logits `[B, C]`."""
    t = recipe.temperature
    kl = nn.KLDivLoss(reduction="mean")(tf.log_softmax(adv / t, 1), tf.softmax(target / t, 1))
    return recipe.alpha * t * t * kl


class PublishedIteration:
    """The iteration; called, it takes the next batch, updates the student and returns the loss, on the device.

    Args:
        student: in train mode.
        teacher: in eval mode, frozen.
        batches: are gone through again and again.
        recipe: constants.
        attack_bn: "train" as published; "eval" puts the student in eval mode for the attack (as TRADES' code does), the
            baseline of equal semantics for attacks in eval mode.
        clean_branch: the clean forward and backward of weight 1 - alpha, which is 0.
        precision: "fp32" (TF32 off) or "tf32", on a GPU.

    Attributes:
        noise: `noise(batch)` is the start's noise; None draws it anew. Set by `start_at`.
        x_adv: of the last call.
        outer_at: images at which the outer loss is taken instead, so that gradients can be compared; None for x_adv.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Batch],
        recipe: Recipe,
        *,
        attack_bn: str = "train",
        clean_branch: bool = True,
        precision: str = "fp32",
    ) -> None:
        self.student, self.teacher_network, self.recipe = student, teacher, recipe
        self.attack_bn, self.clean_branch = attack_bn, clean_branch
        self.batches = cycle(batches)
        # cuDNN tries its algorithms, as the code tells it to
        self.arithmetic = partial(training_arithmetic, precision, next(student.parameters()).device)
        self.noise: Noise | None = None
        self.x_adv: Tensor | None = None
        self.outer_at: Tensor | None = None
        self.optimizer = torch.optim.SGD(
            student.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    @property
    def replays(self) -> int:
        """How many calls were replays of a CUDA graph."""
        return 0

    def observed(self) -> AbstractContextManager[object]:
        """While this lasts, `x_adv` and `outer_at` are what they say."""
        return nullcontext()

    def parts(self) -> list[Part]:
        """What is what of an iteration; the rest is the update."""
        return [(self, "attack", "attack"), (self, "teacher", "teacher")]

    def start_at(self, noise: Noise | None) -> None:
        """Let the attack start at given noise, so that iterations can be compared; None lets it be random again."""
        self.noise = noise

    def __call__(self) -> Tensor:
        with self.arithmetic():
            return self.update(next(self.batches))

    def update(self, batch: Batch) -> Tensor:
        """One step of the optimiser; returns the loss, a scalar."""
        self.optimizer.zero_grad()
        adv = self.student(self.attacked_images(batch))
        target = self.teacher(batch)
        loss = distillation(adv, target, self.recipe)
        if self.clean_branch:
            loss = loss + (1.0 - self.recipe.alpha) * tf.cross_entropy(self.student(batch.x), batch.y)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def attacked_images(self, batch: Batch) -> Tensor:
        """Attack, and what the outer loss is taken at."""
        self.x_adv = self.attack(batch)
        return self.x_adv if self.outer_at is None else self.outer_at

    def teacher(self, batch: Batch) -> Tensor:
        """Logits `[B, C]` at the clean images."""
        return self.teacher_network(batch.x)

    def attack(self, batch: Batch) -> Tensor:
        """Adversarial images `[B, C, H, W]`."""
        noise = uniform_noise(batch.x, self.recipe.eps) if self.noise is None else self.noise(batch)
        if self.attack_bn == "eval":
            self.student.eval()
        x_adv = published_pgd(self.student, batch.x, batch.y, self.recipe, noise)
        self.student.train()
        return x_adv
