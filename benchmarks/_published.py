"""One training iteration of Adversarially Robust Distillation as its published code does it, in plain torch, and that
iteration with a peer's attack, compiled, and as a CUDA graph.

Transcribed in our words from the official code of Goldblum, Fowl, Feizi and Goldstein (AAAI 2020). What it does and
need not do:

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
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as tf
from torch import Tensor, nn

from ard_fast._devices import training_arithmetic
from ard_fast.data import Batch

Noise = Callable[[Batch], Tensor]


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
    noise: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    move: Callable[..., Tensor] = ascend,
) -> Tensor:
    """Adversarial images `[B, C, H, W]` for images in [0, 1] and labels `[B]`; the noisy start is not clamped."""
    x_adv = x.detach() + noise
    for _ in range(steps):
        x_adv.requires_grad_()
        loss = tf.cross_entropy(network(x_adv), y, reduction="sum")
        grad = torch.autograd.grad(loss, [x_adv])[0]
        x_adv = move(x_adv, grad, x, eps, step_size)
    return x_adv


def distillation(adv: Tensor, target: Tensor, recipe: Recipe) -> Tensor:
    """alpha T^2 KL(target^T || adv^T), divided by B * C as the default of `nn.KLDivLoss`; logits `[B, C]`."""
    t = recipe.temperature
    kl = nn.KLDivLoss(reduction="mean")(tf.log_softmax(adv / t, 1), tf.softmax(target / t, 1))
    return recipe.alpha * t * t * kl


class PublishedIteration:
    """The iteration; called, it takes the next batch, updates the student and returns the loss, on the device.

    Args:
        student: In train mode.
        teacher: In eval mode, frozen.
        batches: Are gone through again and again.
        recipe: Constants.
        attack_bn: "train" as published; "eval" puts the student in eval mode for the attack (as TRADES' code does), the
            baseline of equal semantics for attacks in eval mode.
        precision: "fp32" (TF32 off) or "tf32", on a GPU.

    Attributes:
        replays: How many calls were replays of a CUDA graph.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        batches: Sequence[Batch],
        recipe: Recipe,
        *,
        attack_bn: str = "train",
        precision: str = "fp32",
    ) -> None:
        self.student, self.recipe, self.attack_bn = student, recipe, attack_bn
        self.network: Callable[[Tensor], Tensor] = student  # or its compiled form
        self.teacher: Callable[[Tensor], Tensor] = teacher
        self.move, self.distillation = ascend, distillation
        self.batches = cycle(batches)
        # cuDNN tries its algorithms, as the code tells it to
        self.arithmetic = partial(training_arithmetic, precision, next(student.parameters()).device)
        self.noise: Noise | None = None
        self.outer_at: Tensor | None = None
        self.x_adv = torch.empty(0)
        self.replays = 0
        self.optimizer = torch.optim.SGD(
            student.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def __call__(self) -> Tensor:
        with self.arithmetic():
            return self.update(next(self.batches))

    def observed(self, noise: Noise, outer_at: Tensor | None) -> tuple[Tensor, Tensor]:
        """One call whose attack starts at given noise and whose outer loss is taken at given images, or at its own.

        Returns:
            The loss, and the adversarial images of its attack.
        """
        self.noise, self.outer_at = noise, outer_at
        loss = self()
        self.noise, self.outer_at = None, None
        return loss, self.x_adv

    def update(self, batch: Batch) -> Tensor:
        """One step of the optimiser; returns the loss, a scalar."""
        self.optimizer.zero_grad()
        self.x_adv = self.attack(batch)
        adv = self.network(self.x_adv if self.outer_at is None else self.outer_at)
        loss = self.distillation(adv, self.teacher(batch.x), self.recipe) + self.clean_loss(batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def clean_loss(self, batch: Batch) -> Tensor:
        """The cross-entropy of the clean images, of weight 1 - alpha."""
        return (1.0 - self.recipe.alpha) * tf.cross_entropy(self.network(batch.x), batch.y)

    def attack(self, batch: Batch) -> Tensor:
        """Adversarial images `[B, C, H, W]`."""
        r = self.recipe
        noise = uniform_noise(batch.x, r.eps) if self.noise is None else self.noise(batch)
        self.student.train(self.attack_bn == "train")
        x_adv = published_pgd(
            self.network, batch.x, batch.y, noise, eps=r.eps, step_size=r.step_size, steps=r.steps, move=self.move
        )
        self.student.train()
        return x_adv


class TorchattacksIteration(PublishedIteration):
    """The attack of torchattacks, which puts the network in eval mode; no clean branch: what somebody writes today who
    takes the parts from the shelf.

    Raises:
        ImportError: torchattacks, or something it imports, is not installed.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, attack_bn="eval")
        import torchattacks

        r = self.recipe
        self.peer = torchattacks.PGD(self.student, eps=r.eps, alpha=r.step_size, steps=r.steps, random_start=True)

    def clean_loss(self, batch: Batch) -> Tensor:
        return batch.x.new_zeros(())

    def attack(self, batch: Batch) -> Tensor:
        return self.peer(batch.x, batch.y)


class CompiledIteration(PublishedIteration):
    """The published iteration with the networks, the step and the loss compiled.

    A compiled backward computes all gradients of its inputs that require one, the weights' among them; so they do not
    require one during the attack, or the compiler would be charged for work that eager mode leaves out.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        compiled: Callable[..., Any] = partial(torch.compile, dynamic=False)
        self.network, self.teacher = compiled(self.student), compiled(self.teacher)
        self.move, self.distillation = compiled(ascend), compiled(distillation)

    def attack(self, batch: Batch) -> Tensor:
        self.student.requires_grad_(False)
        x_adv = super().attack(batch)
        self.student.requires_grad_()
        return x_adv


class GraphedIteration(PublishedIteration):
    """The published iteration as one CUDA graph: what capturing alone gives. Batches are copied to where it reads."""

    WARM_UP = 3

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0

    def update(self, batch: Batch) -> Tensor:
        if self.calls < self.WARM_UP:
            self.calls += 1
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                loss = super().update(batch)
            torch.cuda.current_stream().wait_stream(stream)
            return loss
        if self.graph is None:
            self.static = Batch(batch.x.clone(), batch.y.clone(), batch.ids.clone(), batch.seed.clone())
            self.graph = torch.cuda.CUDAGraph()
            self.optimizer.zero_grad(set_to_none=True)
            with torch.cuda.graph(self.graph):
                self.loss = super().update(self.static)
        for name in ("x", "y", "ids", "seed"):
            getattr(self.static, name).copy_(getattr(batch, name))
        self.graph.replay()
        self.replays += 1
        return self.loss
