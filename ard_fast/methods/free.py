"""Free adversarial training (Shafahi et al.; NeurIPS 2019, arXiv 1904.12843): one backward pass for both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as tf
from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Method, Network, StepResult
from ard_fast.methods.shared import Quirk, recipe


@dataclass(eq=False, repr=False, kw_only=True)
class FreeAdversarialTraining(Method):
    """CE(S(x + delta), y), m updates on each batch, each of which moves the weights and delta by one backward pass.

    delta <- clip(delta + step_size sign(grad), -eps, eps) after each pass. Before each, delta is clamped to
    [-x, 1 - x]: x + delta is an image, and each of its pixels has a gradient. locuslab/fast_adversarial clamps delta,
    too, but only after the pass. The student is in train mode throughout: one batch-norm update for each of the m.

    The paper's own code (ashafahi/free_adv_train) clamps the sum instead, `clamp_delta=False`. Where that holds a pixel
    its gradient is zero and delta stays: a black pixel whose delta has become negative is never attacked again until
    another image is brighter there. On photographs these are few; on digits, most of the image.

    delta belongs to a place in the batch, not to an image: it is kept between the m updates, and the next batch starts
    from where the last one left it, whatever images are there then, as in the published code. A smaller last batch uses
    and moves its first places. Every process keeps the places of all, since a smaller batch cuts them otherwise, and a
    run may go on with other processes.
    """

    name = "free"
    summary = "free adversarial training: m updates a batch, weights and delta by one backward (Shafahi et al., 2019)"
    attacks = True
    step_ratio = 1.0
    whole_batch = True
    # 80,000 updates in batches of 128, with drops at half and three quarters.
    paper = recipe(epochs=205, milestones=(102, 154))
    quirks = (
        Quirk("x + delta is clamped, delta is not: it stays where the clamp holds a pixel", {"clamp_delta": False}),
    )

    eps: float
    step_size: float
    replays: int = 8
    clamp_delta: bool = True
    label_smoothing: float = 0.0
    kept: Tensor | None = field(default=None, init=False)

    def attack(self, student: Network, batch: Batch) -> Inner:
        delta = self.delta_of(batch)
        if self.clamp_delta:  # in place, and so in what is kept; twice is once
            delta.detach().clamp_(-batch.x, 1.0 - batch.x)
        return Inner(x_adv=(batch.x + delta).clamp(0.0, 1.0), delta=delta)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits = student(known(inner.x_adv))
        return StepResult(tf.cross_entropy(logits, batch.y, label_smoothing=self.label_smoothing), logits)

    def after_backward(self, batch: Batch, inner: Inner) -> None:
        self.move(batch, known(inner.delta), known(known(inner.delta).grad))

    def delta_of(self, batch: Batch) -> Tensor:
        """The perturbation of a batch `[B, ...]`: a leaf that requires grad and shares memory with what is kept."""
        kept, x, places = self.kept, batch.x, batch.global_size or len(batch.x)
        if kept is None or len(kept) < places:
            shape, strides = (places, *x.shape[1:]), (x[0].numel(), *x.stride()[1:])  # in the images' layout
            self.kept = torch.empty_strided(shape, strides, dtype=x.dtype, device=x.device).zero_()
            if kept is not None:
                self.kept[: len(kept)] = kept.to(x.device)
        elif kept.device != x.device:
            self.kept = kept.to(x.device)
        return known(self.kept)[batch.offset : batch.offset + len(x)].detach().requires_grad_()

    def move(self, batch: Batch, delta: Tensor, grad: Tensor) -> None:
        """The signed step of a batch's `delta` along `grad`, in place, and so in what every process keeps."""
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
        if self.context.processes == 1:
            return
        places = batch.global_size or len(delta)
        kept = known(self.kept)
        moved = torch.zeros_like(kept[:places])
        moved[batch.offset : batch.offset + len(delta)] = delta.detach()
        kept[:places] = self.context.all_reduce(moved)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.kept is None else {"delta": self.kept}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.kept = state["delta"].clone() if state else None

    def conventions(self) -> list[str]:
        return [
            f"loss CE(S(x + delta), y), mean over the batch; {self.replays} updates on each batch",
            f"each update's backward pass also moves delta, which is kept from batch to batch; {self.clamp_words()}",
        ]

    def clamp_words(self) -> str:
        """What keeps the pixel range, in words."""
        return f"{'delta' if self.clamp_delta else 'only x + delta'} is clamped to the pixel range"
