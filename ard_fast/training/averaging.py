"""Averages of the student's weights: SWA (Izmailov et al., UAI 2018) and EMA."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ard_fast.models.trial import copied, frozen

AVERAGINGS = ("off", "swa", "ema")


class WeightAverage:
    """A second network whose weights are the average of the student's over training.

    "swa": the mean of the weights at the end of each epoch. "ema": after each update, average <- d average + (1 - d)
    weights with d = min(decay, (1 + n) / (10 + n)) at the n-th, so that a short run is not stuck at its start.

    Batch-norm statistics are averaged like the weights. Another pass over clean training images would cost an epoch's
    forward at each validation, and would replace the mix of clean and adversarial images, which the method's own
    passes gave the statistics, with clean ones only.

    `torch.optim.swa_utils.AveragedModel` would do the same, but copies its counter to the device at every update, which
    waits for the device.

    Args:
        student: the network, not wrapped, in its place and layout; only read.
        kind: "swa" or "ema".
        decay: of "ema", 0 to below 1.
        first_epoch: before this epoch (from 0) nothing is averaged.
    """

    def __init__(self, student: nn.Module, *, kind: str, decay: float = 0.999, first_epoch: int = 0) -> None:
        self.student, self.kind, self.decay, self.first_epoch = student, kind, decay, first_epoch
        self.count, self._epochs = 0, 0
        self._average = frozen(copied(student, "averaging", "use off, and no NAME-ema"))
        pairs = list(zip(self._average.state_dict().values(), student.state_dict().values(), strict=True))
        self._floats = [(mean, now) for mean, now in pairs if mean.is_floating_point()]
        self._others = [(mean, now) for mean, now in pairs if not mean.is_floating_point()]  # counters: copied

    @property
    def network(self) -> nn.Module:
        """What is validated, kept and tested: the average, or the student itself until there is one."""
        return self._average if self.count else self.student

    def count_update(self, epoch: int) -> float | None:
        """Count one of the optimiser's steps; how far the average moves after it, as a share of its way to the weights.

        Returns:
            None where it does not move, 1.0 for the first time.
        """
        if self.kind != "ema" or epoch < self.first_epoch:
            return None
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.count else 0.0
        self.count += 1
        return 1.0 - decay

    def after_epoch(self, epoch: int) -> None:
        """Called after an epoch's last update, before its validation; again when a run goes on inside that."""
        if self.kind == "swa" and epoch >= max(self.first_epoch, self._epochs):
            self.count += 1
            self.move(1.0 / self.count)
            self._epochs = epoch + 1

    @torch.no_grad()
    def move(self, share: float | Tensor) -> None:
        """Move the average to the present weights by a share of the way; the number 1.0 copies them.

        Args:
            share: a number, or a float32 scalar on the device.
        """
        means, nows = [mean for mean, _ in self._floats], [now for _, now in self._floats]
        if not isinstance(share, Tensor) and share == 1.0:
            torch._foreach_copy_(means, nows)
        else:  # not lerp, which has no fast form for a weight on the device
            ways = torch._foreach_sub(nows, means)
            torch._foreach_mul_(ways, share)
            torch._foreach_add_(means, ways)
        if self._others:
            torch._foreach_copy_([mean for mean, _ in self._others], [now for _, now in self._others])

    def state_dict(self) -> dict[str, Tensor]:
        """The average and the number of its terms; nothing before the first."""
        if not self.count:
            return {}
        network = {f"network.{key}": value for key, value in self._average.state_dict().items()}
        return {"count": torch.tensor(self.count), "epochs": torch.tensor(self._epochs), **network}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Put `state_dict`'s tensors back."""
        if not state:
            return
        self.count, self._epochs = int(state["count"]), int(state["epochs"])
        prefix = "network."
        network = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        self._average.load_state_dict(network)
