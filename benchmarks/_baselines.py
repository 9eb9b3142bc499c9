"""What the iteration is compared with beside the published form itself: a peer's attack, a compiler, a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

try:
    import torchattacks
except ImportError as error:  # or what it imports
    torchattacks, missing = None, error
from _published import Noise, PublishedIteration, Recipe, ascend, distillation, published_pgd, uniform_noise
from torch import Tensor, nn

from ard_fast.data import Batch


def torchattacks_pgd(network: nn.Module, recipe: Recipe) -> Any:
    """torchattacks' PGD on a network, called with images and labels.

    Raises:
        ImportError: torchattacks, or something it imports, is not installed.
    """
    if torchattacks is None:
        raise missing
    r = recipe
    return torchattacks.PGD(network, eps=r.eps, alpha=r.step_size, steps=r.steps, random_start=True)


class TorchattacksIteration(PublishedIteration):
    """The attack of torchattacks, which puts the network in eval mode, and `F.kl_div`; no clean branch, no teacher's
    graph: what somebody writes today who takes the parts from the shelf.

    Raises:
        ImportError: torchattacks, or something it imports, is not installed.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args, attack_bn="eval", clean_branch=False)
        self.peer = torchattacks_pgd(self.student, self.recipe)

    def teacher(self, batch: Batch) -> Tensor:
        with torch.no_grad():
            return super().teacher(batch)

    def attack(self, batch: Batch) -> Tensor:
        return self.peer(batch.x, batch.y)


class CompiledIteration(PublishedIteration):
    """The published iteration with the networks, the step and the loss compiled.

    A compiled backward computes all gradients of its inputs that require one, the weights' among them; so they do not
    require one during the attack, or the compiler would be charged for work that eager mode leaves out.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        compiled: Callable[..., Any] = torch.compile
        self.network = compiled(self.student, dynamic=False)
        self.teacher_network = compiled(self.teacher_network, dynamic=False)
        self.move, self.distillation = compiled(ascend, dynamic=False), compiled(distillation, dynamic=False)

    def attack(self, batch: Batch) -> Tensor:
        noise = uniform_noise(batch.x, self.recipe.eps) if self.noise is None else self.noise(batch)
        parameters = list(self.student.parameters())
        for parameter in parameters:
            parameter.requires_grad_(False)
        if self.attack_bn == "eval":
            self.student.eval()
        x_adv = published_pgd(self.network, batch.x, batch.y, self.recipe, noise, self.move)
        self.student.train()
        for parameter in parameters:
            parameter.requires_grad_()
        return x_adv

    def update(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.distillation(self.network(self.attacked_images(batch)), self.teacher(batch), self.recipe)
        if self.clean_branch:
            clean = nn.functional.cross_entropy(self.network(batch.x), batch.y)
            loss = loss + (1.0 - self.recipe.alpha) * clean
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class GraphedIteration(PublishedIteration):
    """The published iteration as one CUDA graph: what capturing alone gives. Batches are copied to where it reads."""

    WARM_UP = 3

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0
        self._replays = 0

    @property
    def replays(self) -> int:
        return self._replays

    def parts(self) -> list[Any]:
        return []  # nothing can be timed inside of a replay

    def start_at(self, noise: Noise | None) -> None:
        super().start_at(noise)
        self.graph = None  # it holds the start as well

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
        self._replays += 1
        return self.loss
