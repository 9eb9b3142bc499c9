"""One training iteration of Adversarially Robust Distillation as its published code does it, in plain torch, and that
iteration with a peer's attack, compiled, and as a CUDA graph; and those of AdaAD, IGDM and SAAD, whose attack asks the
teacher in every step.

Transcribed in our words from the official code of Goldblum, Fowl, Feizi and Goldstein (AAAI 2020); the three others as
`ard_fast.methods` describes their authors' codes. What it does and need not do:

* the student is in train mode inside the attack: batch statistics, and running ones that every forward pass moves;
* the clean images go through the student, forward and backward, for a cross-entropy that alpha = 1 multiplies by zero;
* the teacher is asked anew in every iteration, in float32, by its plain network;
* every expression is a handful of eager operations, one result each.

It is given what it does not need to pay for here: its images lie on the device, augmented (the code's own workers
decode and crop them with PIL), the loss is not fetched to the host after every step, as the code does to print it, and
`DataParallel`, which does nothing with one GPU, is left out. All of this is in its favour.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from types import MappingProxyType
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


Objective = Callable[[Tensor], Tensor]
"""From adversarial images to what an attack raises, summed over them."""


def raised(
    objective: Objective,
    x: Tensor,
    noise: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    move: Callable[..., Tensor] = ascend,
) -> Tensor:
    """Adversarial images `[B, C, H, W]` for images in [0, 1]; the noisy start is not clamped."""
    x_adv = x.detach() + noise
    for _ in range(steps):
        x_adv.requires_grad_()
        grad = torch.autograd.grad(objective(x_adv), [x_adv])[0]
        x_adv = move(x_adv, grad, x, eps, step_size)
    return x_adv


def cross_entropy(network: Callable[[Tensor], Tensor], y: Tensor) -> Objective:
    """Of labels `[B]`."""
    return lambda x_adv: tf.cross_entropy(network(x_adv), y, reduction="sum")


def published_pgd(network: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, noise: Tensor, **settings: Any) -> Tensor:
    """Adversarial images that raise the cross-entropy of labels `[B]`."""
    return raised(cross_entropy(network, y), x, noise, **settings)


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
        init: Of the attack's start, as `F.random_start` takes it.
        replays: How many calls were replays of a CUDA graph.
    """

    init: Mapping[str, Any] = MappingProxyType({"init": "uniform"})

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
        loss = self.outer_loss(batch, self.x_adv if self.outer_at is None else self.outer_at)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def outer_loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        """What the update lowers at given adversarial images, a scalar."""
        adv = self.network(x_adv)
        return self.distillation(adv, self.teacher(batch.x), self.recipe) + self.clean_loss(batch)

    def objective(self, batch: Batch) -> Objective:
        """What the attack raises."""
        return cross_entropy(self.network, batch.y)

    def start(self, x: Tensor) -> Tensor:
        """The noise at which the attack starts."""
        return uniform_noise(x, self.recipe.eps)

    def clean_loss(self, batch: Batch) -> Tensor:
        """The cross-entropy of the clean images, of weight 1 - alpha."""
        return (1.0 - self.recipe.alpha) * tf.cross_entropy(self.network(batch.x), batch.y)

    def attack(self, batch: Batch) -> Tensor:
        """Adversarial images `[B, C, H, W]`."""
        r = self.recipe
        noise = self.start(batch.x) if self.noise is None else self.noise(batch)
        self.student.train(self.attack_bn == "train")
        objective = self.objective(batch)
        x_adv = raised(objective, batch.x, noise, eps=r.eps, step_size=r.step_size, steps=r.steps, move=self.move)
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


NORMAL_STD = 1e-3


def divergence(logits: Tensor, target: Tensor, reduction: str) -> Tensor:
    """KL(target || logits) by torch's two softmaxes."""
    return nn.KLDivLoss(reduction=reduction)(tf.log_softmax(logits, 1), tf.softmax(target, 1))


class AdaADIteration(PublishedIteration):
    """AdaAD's (Huang et al., CVPR 2023): the attack raises KL(T(x') || S(x')) through both networks, the student in
    eval mode; the clean images go through both for a loss of weight 0."""

    init = MappingProxyType({"init": "normal", "std": NORMAL_STD})

    def __init__(self, *args: Any, attack_bn: str = "eval", **settings: Any) -> None:
        super().__init__(*args, attack_bn=attack_bn, **settings)

    def start(self, x: Tensor) -> Tensor:
        return NORMAL_STD * torch.randn_like(x)

    def objective(self, batch: Batch) -> Objective:
        return lambda x_adv: divergence(self.network(x_adv), self.teacher(x_adv), "sum")

    def outer_loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        clean, adv = self.network(batch.x), self.network(x_adv)
        with torch.no_grad():
            clean_target, target = self.teacher(batch.x), self.teacher(x_adv)
        alpha = self.recipe.alpha
        return alpha * divergence(adv, target, "mean") + (1.0 - alpha) * divergence(clean, clean_target, "mean")


class IGDMIteration(AdaADIteration):
    """IGDM's (Lee, Cho, Kim; ICLR 2025): AdaAD's attack, and beside its loss the KL of the logits' differences between
    x + d and x - d, weighted by the share of the epochs that are begun: the first of `EPOCHS`."""

    EPOCHS = 200

    def rows(self, batch: Batch, x_adv: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of each image, and the teacher's logits at x + d."""
        opposite = batch.x - (x_adv - batch.x)
        adv, mirrored = self.network(x_adv), self.network(opposite)
        with torch.no_grad():
            target, mirrored_target = self.teacher(x_adv), self.teacher(opposite)
        matching = divergence(adv - mirrored, target - mirrored_target, "none").sum(1)
        return divergence(adv, target, "none").sum(1) + matching / self.EPOCHS, target

    def outer_loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        return self.rows(batch, x_adv)[0].mean()


class SAADIteration(IGDMIteration):
    """SAAD's (Lee, Chung; TMLR 2026): IGDM's loss weighted by the teacher's entropy; its attack moves the logit of the
    true class of the teacher's clean logits to first order; a clean forward of the student for a term of weight 0."""

    SCALE = 5.0

    def objective(self, batch: Batch) -> Objective:
        x = batch.x.clone().requires_grad_()
        clean = self.teacher(x)
        gradient = torch.autograd.grad(clean.gather(1, batch.y[:, None]).sum(), [x])[0]
        clean, at_label = clean.detach(), tf.one_hot(batch.y, clean.shape[1])

        def objective(x_adv: Tensor) -> Tensor:
            change = (gradient * (x_adv - batch.x)).flatten(1).sum(1, keepdim=True)
            return divergence(self.network(x_adv), clean + at_label * change, "sum")

        return objective

    def outer_loss(self, batch: Batch, x_adv: Tensor) -> Tensor:
        rows, target = self.rows(batch, x_adv)
        p = tf.softmax(target, 1)
        entropy = -(p * p.log()).sum(1)
        self.network(batch.x)
        return (self.SCALE * (entropy - entropy.min()) * rows).mean()


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
