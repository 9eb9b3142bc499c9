"""Adversarial weight perturbation (Wu, Xia, Wang; NeurIPS 2020, arXiv 2004.05884)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ard_fast.attacks.model_mode import attack_mode

_TINY = 1e-20  # of a gradient's norm: a weight that the loss does not depend on is not moved


class AdversarialWeightPerturbation:
    """Before an update, moves each weight w by gamma |w| g / |g|, g the gradient of the method's own loss; the update
    is taken there, and the move undone after it, as in the authors' code.

    Only weights with two or more dimensions move, each by its own norm (equation 10 of the paper). The gradient is
    that of the outer loss at the adversarial images already found, at the price of one more forward and backward pass.
    The authors take it in a copy of the network; a gradient with respect to the weights alone leaves the network as it
    is, so no copy is needed: `.grad`, modes and batch-norm statistics are not touched. The optimiser's weight decay
    sees the moved weights. Nothing waits for the device.

    Args:
        student: the network, not wrapped.
        gamma: size of the move relative to each weight's norm, more than 0 (the paper: 0.01 for AT, 0.005 for TRADES).
        first_epoch: before this epoch (from 0) nothing is moved.
        average: turns the gradients of this process into those of the global batch, in place.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        gamma: float,
        first_epoch: int = 0,
        average: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        self.student, self.gamma, self.first_epoch, self.average = student, gamma, first_epoch, average
        self.weights: list[Tensor] = [
            weight for weight in student.parameters() if weight.dim() >= 2 and weight.requires_grad
        ]
        self._moves: list[Tensor] | None = None

    def begun(self, epoch: int) -> bool:
        """Whether weights are moved in this epoch (from 0)."""
        return epoch >= self.first_epoch

    def perturb(self, losses: Iterable[Callable[[], Tensor]]) -> None:
        """Move the weights up the sum of the losses.

        Args:
            losses: each gives a scalar that depends on the student; called one after the other.
        """
        total: list[Tensor] | None = None
        with attack_mode(self.student, "train_frozen"):
            for loss in losses:
                found = torch.autograd.grad(loss(), self.weights, allow_unused=True, materialize_grads=True)
                if total is None:
                    total = list(found)
                else:
                    torch._foreach_add_(total, list(found))
        if total is None:
            return
        if self.average is not None:
            self.average(total)
        with torch.no_grad():
            scales = torch._foreach_norm(self.weights)
            norms = torch._foreach_norm(total)
            torch._foreach_add_(norms, _TINY)
            torch._foreach_div_(scales, norms)
            torch._foreach_mul_(scales, self.gamma)
            self._moves = [grad.mul_(scale) for grad, scale in zip(total, scales, strict=True)]
            torch._foreach_add_(self.weights, self._moves)

    def restore(self) -> None:
        """Undo the move, after the optimiser's step."""
        if self._moves is None:
            return
        with torch.no_grad():
            torch._foreach_sub_(self.weights, self._moves)
        self._moves = None
