"""The optimiser of a run, and its learning rate as a function of the epoch: nothing to save, nothing to restore."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ard_fast._typing import known

if TYPE_CHECKING:
    from ard_fast.training.config import TrainConfig

_RISE = 0.3  # share of the training in which onecycle rises


def learning_rate(config: TrainConfig, epoch: float) -> float:
    """The learning rate at a moment of training.

    Args:
        config: `schedule`, `lr`, `lr_factor`, `epochs`, `replays`, `milestones` and `warmup_epochs` are read.
        epoch: epochs done so far, batch repeats counted, with the fraction of the current one (2.5: in the middle of
            the third).

    `ard` reproduces the official ARD code, whose every drop multiplies the constant initial rate: the first milestone
    acts, the later ones set the same rate again (0.1 then 0.01; 0.001 is never reached).

    `onecycle` has the shape of `torch.optim.lr_scheduler.OneCycleLR` with its defaults, at every step: from lr / 25 to
    lr in the first 30 % of the training, then to lr / 250,000, along cosines. The momentum stays as it is.
    """
    rate = known(config.lr)
    if epoch < config.warmup_epochs:
        rate *= epoch / config.warmup_epochs
    if config.schedule == "constant":
        return rate
    total = config.passes() * (config.replays or 1)  # at least `epochs`, and at most replays - 1 more
    if config.schedule == "cosine":
        return rate * 0.5 * (1.0 + math.cos(math.pi * epoch / total))
    if config.schedule == "cyclic":  # one triangle (Wong, Rice, Kolter 2020)
        half = total / 2
        return rate * (1.0 - abs(epoch - half) / half)
    if config.schedule == "onecycle":
        rise = _RISE * total
        start, end, done = (1 / 25, 1.0, epoch / rise) if epoch < rise else (1.0, 4e-6, (epoch - rise) / (total - rise))
        return rate * (end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * done)))
    drops = sum(epoch >= milestone for milestone in config.milestone_epochs())
    return rate * config.lr_factor ** (min(drops, 1) if config.schedule == "ard" else drops)


def relative_rate(config: TrainConfig, epoch: int) -> float:
    """The learning rate when a pass over the images (from 0) begins, in units of `lr`."""
    return learning_rate(config, epoch * (config.replays or 1)) / known(config.lr)


class Scalars:
    """Numbers that the host chooses for every step; on the device, at a fixed address, where a captured step reads
    their present values.

    Args:
        count: of numbers.
        device: float32 tensors there; None for plain Python numbers.
    """

    def __init__(self, count: int, device: torch.device | None) -> None:
        self._values: list[float] = [0.0] * count
        self._tensor = None if device is None else torch.zeros(count, device=device)

    def write(self, values: Sequence[float]) -> None:
        """Set all of them, without waiting for the device."""
        for index, value in enumerate(values):
            if self._tensor is not None and value != self._values[index]:
                self._tensor[index].fill_(value)  # a launch that carries the number: no copy from the host
            self._values[index] = value

    def __getitem__(self, index: int) -> float | Tensor:
        """One of them: a number, or a scalar tensor that follows later writes."""
        return self._values[index] if self._tensor is None else self._tensor[index]


class _Driven(torch.optim.Optimizer):
    """A torch optimiser whose learning rate is set before every step, and whose checkpoints hold plain numbers.

    Its methods are torch's without the decorators that keep torch.compile out of them: these import torch._dynamo, a
    second of every start, and nothing here is compiled.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def set_rate(self, rate: float | Tensor) -> None:
        """Take the next step at this learning rate: a number, or a scalar tensor on the device."""
        for group in self.param_groups:
            group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with the learning rate as a number: waits for the device."""
        state = inspect.unwrap(torch.optim.Optimizer.state_dict)(self)
        for group in state["param_groups"]:
            group["lr"] = float(group["lr"])
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put a state back that was perhaps saved on another device: this optimiser's form stays as it is."""
        groups = [
            {**saved, **{name: own[name] for name in ("fused", "foreach", "capturable") if name in own}}
            for saved, own in zip(state_dict["param_groups"], self.param_groups, strict=True)
        ]
        inspect.unwrap(torch.optim.Optimizer.load_state_dict)(self, {**state_dict, "param_groups": groups})


class SGD(_Driven, torch.optim.SGD):
    """`torch.optim.SGD` as a run drives it."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


class Adam(_Driven, torch.optim.Adam):
    """`torch.optim.Adam` as a run drives it."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


class AdamW(_Driven, torch.optim.AdamW):
    """`torch.optim.AdamW` as a run drives it."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


OPTIMISERS = {"sgd": SGD, "adam": Adam, "adamw": AdamW}


def make_optimiser(parameters: Iterable[Tensor], config: TrainConfig, *, fused: bool) -> SGD | Adam | AdamW:
    """The optimiser of a run.

    Args:
        parameters: of the student.
        config: `optimiser`, `lr`, `weight_decay` and, for SGD, `momentum` and `nesterov` are read.
        fused: one launch for all parameters, which reads a learning rate that is a tensor when it runs, so that a CUDA
            graph can hold it.
    """
    own: dict[str, Any] = {"capturable": fused}
    if config.optimiser == "sgd":
        own = {"momentum": known(config.momentum), "nesterov": config.nesterov}
    return OPTIMISERS[config.optimiser](
        parameters,
        lr=known(config.lr),
        weight_decay=known(config.weight_decay),
        fused=fused or None,  # None leaves the choice between its other forms to torch
        **own,
    )
