"""The perturbation that free adversarial training carries from batch to batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.data import Batch
from ard_fast.methods.base import MethodContext
from ard_fast.methods.settings import FilledSettings


class CarriedPerturbation:
    """One perturbation for each place in the batch, in the eps-ball, moved by a signed step after each pass.

    It belongs to a place, not to an image: the next batch starts from where the last one left it, whatever images are
    there then, as in the published code. A smaller last batch uses and moves its first places. Every process keeps the
    places of all, since a smaller batch cuts them otherwise, and a run may go on with other processes.

    Args:
        eps: radius of the L-infinity ball, in pixels in [0, 1].
        step_size: of the signed step, likewise.
        all_reduce: sums a tensor over the processes (`MethodContext.all_reduce`); None in a run of one process.
    """

    def __init__(self, eps: float, step_size: float, all_reduce: Callable[[Tensor], Tensor] | None = None) -> None:
        self.eps, self.step_size, self.all_reduce = eps, step_size, all_reduce
        self._kept: Tensor | None = None

    def at(self, batch: Batch) -> Tensor:
        """The perturbation of a batch `[B, ...]`: a leaf that requires grad and shares memory with what is kept."""
        kept, x, places = self._kept, batch.x, batch.global_size or len(batch.x)
        if kept is None or len(kept) < places:
            shape, strides = (places, *x.shape[1:]), (x[0].numel(), *x.stride()[1:])  # in the images' layout
            self._kept = torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device).zero_()
            if kept is not None:
                self._kept[: len(kept)] = kept.to(x.device)
        elif kept.device != x.device:
            self._kept = kept.to(x.device)
        return known(self._kept)[batch.offset : batch.offset + len(x)].detach().requires_grad_()

    def move(self, batch: Batch, delta: Tensor, grad: Tensor) -> None:
        """delta <- clip(delta + step sign(grad), -eps, eps), in place, and so in what every process keeps.

        Args:
            batch: that it belongs to.
            delta: as `at` gave it.
            grad: of the loss that the perturbation ascends.
        """
        # The ball around 0 in the space of perturbations; the pixel range is kept when one is added to an image.
        F.pgd_linf_step_(
            delta.detach(),
            grad,
            torch.zeros_like(delta),
            step_size=self.step_size,
            eps=self.eps,
            bounds=(-1.0, 1.0),
            check_bounds=False,
        )
        if self.all_reduce is None:
            return
        places = batch.global_size or len(delta)
        kept = known(self._kept)
        moved = torch.zeros_like(kept[:places])
        moved[batch.offset : batch.offset + len(delta)] = delta.detach()
        kept[:places] = self.all_reduce(moved)

    def state_dict(self) -> dict[str, Tensor]:
        """What is kept; nothing before the first batch."""
        return {} if self._kept is None else {"delta": self._kept}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put `state_dict`'s tensor back."""
        self._kept = state["delta"].clone() if state else None


def carried_perturbation(settings: FilledSettings, context: MethodContext) -> CarriedPerturbation:
    """The perturbation of a run."""
    all_reduce = context.all_reduce if context.processes > 1 else None
    return CarriedPerturbation(settings.eps, settings.step_size, all_reduce)
