"""The perturbation that free adversarial training carries from batch to batch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ard_fast import functional as F


class CarriedPerturbation:
    """One perturbation for each place in the batch, in the eps-ball, moved by a signed step after each pass.

    It belongs to a place, not to an image: the next batch starts from where the last one left it, whatever images are
    there then, as in the published code. A smaller last batch uses and moves its first places.

    Args:
        eps: radius of the L-infinity ball, in pixels in [0, 1].
        step_size: of the signed step, likewise.
    """

    def __init__(self, eps: float, step_size: float) -> None:
        self.eps, self.step_size = eps, step_size
        self._kept: Tensor | None = None

    def at(self, x: Tensor) -> Tensor:
        """The perturbation of a batch `[B, ...]`: a leaf that requires grad and shares memory with what is kept."""
        kept = self._kept
        if kept is None or len(kept) < len(x):
            self._kept = torch.zeros_like(x)
            if kept is not None:
                self._kept[: len(kept)] = kept.to(x.device)
        elif kept.device != x.device:
            self._kept = kept.to(x.device)
        return self._kept[: len(x)].detach().requires_grad_()

    def move(self, delta: Tensor, grad: Tensor) -> None:
        """delta <- clip(delta + step sign(grad), -eps, eps), in place, and so in what is kept.

        Args:
            delta: as `at` gave it.
            grad: of the loss that the perturbation ascends.
        """
        # The ball around 0 in the space of perturbations; the pixel range is kept when one is added to an image.
        F.pgd_linf_step_(
            delta.detach(), grad, torch.zeros_like(delta), step_size=self.step_size, eps=self.eps, bounds=(-1.0, 1.0)
        )

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept; nothing before the first batch."""
        return {} if self._kept is None else {"delta": self._kept}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put `state_dict`'s tensor back."""
        self._kept = state["delta"].clone() if state else None
