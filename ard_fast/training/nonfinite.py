"""Where a NaN or an infinity began: which step of the epoch, and which term of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ard_fast.data import Batch
from ard_fast.methods.base import Inner, StepResult


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; the last good checkpoint was kept."""


class FirstBad(Exception):
    """The first values of a step that are not finite; the message says which."""


def check(what: str, tensor: Tensor | None) -> None:
    """Raise `FirstBad` if a tensor holds a NaN or an infinity; waits for the device."""
    if tensor is None or not tensor.is_floating_point():
        return
    bad = ~tensor.isfinite()
    count = int(bad.sum())
    if count:
        raise FirstBad(f"{what} ({count} of {tensor.numel()} values, the first {tensor[bad][0].item()})")


def check_attack(batch: Batch, inner: Inner) -> None:
    """Raise `FirstBad` for the batch, or the first of what a method's attack gives, that is not finite."""
    check("the input batch", batch.x)
    check("the logits of teacher, peer or average", inner.target)
    check("the second target's logits", inner.clean_target)
    check("the perturbation", inner.delta)
    check("the adversarial images", inner.x_adv)
    check("the weights of the samples", inner.weight)


def check_gradient(result: StepResult, networks: Mapping[str, nn.Module]) -> None:
    """Raise `FirstBad` for the logits, the loss, or the first gradient that is not finite; networks by role."""
    check("the student's logits", result.logits)
    check("the loss", result.loss)
    for role, network in networks.items():
        for name, parameter in network.named_parameters():
            check(f"the gradient of the {role}'s {name}", parameter.grad)


def check_weights(networks: Mapping[str, nn.Module], when: str) -> None:
    """Raise `FirstBad` for the first parameter or buffer that is not finite; networks by role."""
    for role, network in networks.items():
        for name, tensor in network.state_dict().items():
            check(f"the {role}'s {name} {when}", tensor)


def weights_are_finite(*networks: nn.Module) -> Tensor:
    """Whether every parameter and buffer is finite, bool scalar on the device; does not wait for it."""
    tensors = [value for network in networks for value in network.state_dict().values() if value.is_floating_point()]
    return torch.stack([tensor.isfinite().all() for tensor in tensors]).all()


class LossWatch:
    """Notices that the loss is no longer finite, without making the host wait for the device.

    On a CPU after every step; on another device the loss is fetched now and then, and looked at once it has arrived.
    """

    EVERY = 50  # steps between two fetches

    def __init__(self) -> None:
        self.bad = False
        self._steps = 0
        self._arriving: tuple[Tensor, torch.cuda.Event] | None = None

    def look(self, loss: Tensor) -> None:
        """To be called after each step with a sum that stays not finite once it is."""
        if loss.device.type == "cpu":
            self.bad = not math.isfinite(loss)
            return
        if self._arriving is not None and self._arriving[1].query():
            self.bad, self._arriving = not math.isfinite(self._arriving[0]), None
        if self._arriving is None and self._steps % self.EVERY == 0:
            copy = torch.empty((), dtype=loss.dtype, pin_memory=True)
            copy.copy_(loss, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._arriving = (copy, event)
        self._steps += 1
