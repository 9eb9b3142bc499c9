"""A model that counts what an attack costs, and that lets somebody act between two forward passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


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
        cost, count = self.cost, len(x)
        cost.forwards += 1
        cost.forward_images += count
        logits = self.model(x)
        if logits.requires_grad:

            def count_backward(_: Tensor) -> None:
                cost.backwards += 1
                cost.backward_images += count

            logits.register_hook(count_backward)
        return logits
