"""What an attack costs, and room for somebody to act between two forward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ard_fast.attacks import GraphedPGD, as_graph


@dataclass
class Cost:
    """Passes through the network, and the images that went through in them."""

    forwards: int = 0
    forward_images: int = 0
    backwards: int = 0
    backward_images: int = 0
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


class CountedModel(nn.Module):
    """The network itself, its passes counted in `cost`.

    Args:
        model: the network; a submodule, so that modes set here reach it.
        before_forward: called before every forward pass; may raise, to stop.
    """

    def __init__(self, model: nn.Module, before_forward: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.model = model
        self.cost = Cost()
        self._before_forward = before_forward

    def forward(self, x: Tensor) -> Tensor:
        self._before_forward()
        count = len(x)
        self.cost.forwards += 1
        self.cost.forward_images += count
        logits = self.model(x)
        if logits.requires_grad:

            def count_backward(_: Tensor) -> None:
                self.cost.backwards += 1
                self.cost.backward_images += count

            logits.register_hook(count_backward)
        return logits


class CountedAttack:
    """An attack on a `CountedModel`, on CUDA as a graph where that can be.

    A replay passes by the counters, and by whoever acts between passes; it makes as many passes as any call on as many
    images.
    """

    def __init__(self, attack: Any) -> None:
        self._attack = as_graph(attack)
        self._costs: dict[int, Cost] = {}

    def __call__(self, model: CountedModel, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        if not isinstance(self._attack, GraphedPGD):
            return self._attack(model, x, y, **options)
        before, replays = replace(model.cost), self._attack.replays
        x_adv = self._attack(model, x, y, **options)
        if self._attack.replays == replays:
            self._costs[len(x)] = model.cost - before
        else:
            model.cost = before + self._costs[len(x)]
        return x_adv
