"""Student, teacher and images that bench_train.py trains on, the same ones for everybody."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ard_fast import functional as F
from ard_fast.data import Batch, Dataset, Split, make_loader
from ard_fast.models import build_model

BATCHES = {"cpu": 2, "cuda": 16}
"""Different batches that are gone through again and again. An epoch's plan is drawn once for all of them."""

PADDING = {"digits": 0}
"""Of the random crops; 4 elsewhere."""


@dataclass(frozen=True)
class Pair:
    """A student and a teacher, by the names of `ard_fast.models`, and the data set whose images they take."""

    student: str
    teacher: str
    dataset: str = "cifar10"


PAIRS = {
    "mobilenetv2": Pair("mobilenetv2", "resnet18"),
    "mobilenetv2-wrn": Pair("mobilenetv2", "wrn-34-10"),
    "resnet18": Pair("resnet18", "resnet18"),
    "resnet18-wrn": Pair("resnet18", "wrn-34-10"),
    "digits": Pair("digits-student", "digits-teacher", "digits"),
}


@dataclass
class TrainingCase:
    """Initial weights with settled batch-norm statistics, and random images: nothing about time depends on either.

    Args:
        pair: the networks.
        batch: images a step.
        device: where everything is.
    """

    pair: Pair
    batch: int
    device: torch.device
    seed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        channels, size, levels = (1, 8, 16) if self.pair.dataset == "digits" else (3, 32, 255)
        count = self.batch * BATCHES[self.device.type]
        images = torch.randint(0, levels + 1, (count + 2 * self.batch, channels, size, size), dtype=torch.uint8)
        whole = Split(images, torch.randint(0, 10, (len(images),)), torch.arange(len(images)))
        train, val, test = (
            whole.take(part) for part in torch.arange(len(images)).split([count, self.batch, self.batch])
        )
        self.data = Dataset(self.pair.dataset, train, val, test, num_classes=10, levels=levels)
        x = (train.images[: min(count, 64)].float() / levels).to(self.device)
        self._student = settled(build_model(self.pair.student, in_channels=channels).to(self.device), x)
        self._teacher = settled(build_model(self.pair.teacher, in_channels=channels).to(self.device), x)
        self._teacher.eval().requires_grad_(False)

    def student(self, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
        """A copy of the student in train mode."""
        return copy.deepcopy(self._student).train().to(memory_format=layout)

    def teacher(self, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
        """The teacher in eval mode, frozen; one copy for each layout, which nobody may change."""
        return self._teacher if layout == torch.contiguous_format else self._teacher_channels_last

    @cached_property
    def _teacher_channels_last(self) -> nn.Module:
        return copy.deepcopy(self._teacher).to(memory_format=torch.channels_last)

    def batches(self, layout: torch.memory_format = torch.contiguous_format) -> Sequence[Batch]:
        """The batches of the first epoch of a run with this seed, as the package's loader makes them."""
        loader = make_loader(
            self.data.train,
            device=self.device,
            levels=self.data.levels,
            seed=self.seed,
            batch_size=self.batch,
            padding=PADDING.get(self.pair.dataset, 4),
            flip=self.pair.dataset != "digits",
            layout=layout,
        )
        return list(loader.batches(0))


def settled(network: nn.Module, x: Tensor) -> nn.Module:
    """The network, its running statistics those of the images `x`: as they are, activations of a deep one overflow."""
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain mean of all batches seen
    network.train()
    with torch.no_grad():
        network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.num_batches_tracked.zero_()
    return network


def package_noise(batch: Batch, eps: float, clamp: bool) -> Tensor:
    """The noise with which the package's attack starts for a batch; `clamp` as its setting `clamp_start`."""
    return F.random_start(batch.x, eps=eps, clamp=clamp, seed=batch.seed, sample_ids=batch.ids) - batch.x
