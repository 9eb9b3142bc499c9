"""Networks and images that attacks and iterations are timed on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ard_fast.attacks import PGD
from ard_fast.data import Batch, Dataset, Split, load_dataset, make_loader
from ard_fast.models import build_model

TRAIN_EPOCHS, TRAIN_BATCH, TRAIN_STEPS, TRAIN_LR = 6, 64, 3, 0.05


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


# ---------------------------------------------------------------------------------------------------------------------
# For bench_attacks.py
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Victim:
    """A network in eval mode whose parameters require gradients, images, and the labels that it gives them.

    Attributes:
        model: Maps images to logits.
        x: Images [B, ...] in [0, 1].
        y: Labels [B], which the network gives to the clean images: everybody starts with all of them to attack.
        eps: Radius in L-infinity.
        eps_l2: Radius in L2.
        trained: False for initial weights, whose robust accuracy is 0 and says nothing; the loss reached does.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    eps_l2: float
    trained: bool


def digits(batch: int, device: torch.device) -> Victim:
    """The package's small network for 8x8 digits, trained against PGD for a few seconds, and test images it gets right.

    Raises:
        ValueError: If there are fewer than `batch` such images.
    """
    torch.manual_seed(0)
    data = load_dataset("digits")
    eps = 0.2
    model = build_model("digits-student").to(device)
    images = (data.train.images.float() / data.levels).to(device)
    labels = data.train.labels.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=TRAIN_LR, momentum=0.9, weight_decay=2e-4)
    attack = PGD(eps=eps, step_size=eps / 2, steps=TRAIN_STEPS)
    for epoch in range(TRAIN_EPOCHS):
        for chosen in torch.randperm(len(images)).split(TRAIN_BATCH):
            x, y = images[chosen.to(device)], labels[chosen.to(device)]
            x_adv = attack(model, x, y, seed=epoch)
            model.train()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x_adv), y).backward()
            optimizer.step()
    model.eval()
    model.zero_grad(set_to_none=True)
    x, y = (data.test.images.float() / data.levels).to(device), data.test.labels.to(device)
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero()[:, 0]
    if len(right) < batch:
        raise ValueError(f"--batch: expected at most {len(right)} for digits, got {batch}")
    return Victim(model, x[right[:batch]], y[right[:batch]], eps, eps_l2=1.0, trained=True)


def untrained(name: str, batch: int, device: torch.device) -> Victim:
    """A network with initial weights and settled batch-norm statistics, and random images: of MNIST's size for LeNet-5,
    of CIFAR's for those that `ard_fast.models` knows.
    """
    mnist = name == "lenet"
    torch.manual_seed(0)
    x = torch.rand(max(batch, 64), *((1, 28, 28) if mnist else (3, 32, 32)), device=device)
    model = settled((_lenet() if mnist else build_model(name)).to(device), x).eval()
    with torch.no_grad():
        y = model(x[:batch]).argmax(1)
    eps, eps_l2 = (0.3, 1.5) if mnist else (8 / 255, 0.5)
    return Victim(model, x[:batch].clone(), y, eps, eps_l2, trained=False)


def _lenet() -> nn.Module:
    first = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
    last = [nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)]
    return nn.Sequential(*first, nn.Flatten(), *last)


# ---------------------------------------------------------------------------------------------------------------------
# For bench_train.py
# ---------------------------------------------------------------------------------------------------------------------

BATCHES = {"cpu": 2, "cuda": 16}
"""Different batches that are gone through again and again. An epoch's plan is drawn once for all of them."""


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


class TrainingCase:
    """Student, teacher and images that everybody trains on.

    Initial weights with settled batch-norm statistics, and random images: nothing about time depends on either.

    Args:
        pair: The networks.
        batch: Images a step.
        device: Where everything is.
    """

    seed = 0

    def __init__(self, pair: Pair, batch: int, device: torch.device) -> None:
        self.pair, self.batch, self.device = pair, batch, device
        torch.manual_seed(self.seed)
        digits = pair.dataset == "digits"
        self.padding = 0 if digits else 4
        channels, size, levels = (1, 8, 16) if digits else (3, 32, 255)
        count = batch * BATCHES[device.type]
        images = torch.randint(0, levels + 1, (count + 2 * batch, channels, size, size), dtype=torch.uint8)
        whole = Split(images, torch.randint(0, 10, (len(images),)), torch.arange(len(images)))
        train, val, test = (whole.take(part) for part in torch.arange(len(images)).split([count, batch, batch]))
        self.data = Dataset(pair.dataset, train, val, test, num_classes=10, levels=levels)
        x = (train.images[: min(count, 64)].float() / levels).to(device)
        self._student = settled(build_model(pair.student, in_channels=channels).to(device), x)
        self._teacher = settled(build_model(pair.teacher, in_channels=channels).to(device), x)
        self._teacher.eval().requires_grad_(False)

    def student(self) -> nn.Module:
        """A copy of the student in train mode."""
        return copy.deepcopy(self._student).train()

    def teacher(self, layout: torch.memory_format = torch.contiguous_format) -> nn.Module:
        """A copy of the teacher in eval mode, frozen."""
        return copy.deepcopy(self._teacher).to(memory_format=layout)

    def batches(self) -> Sequence[Batch]:
        """The batches of the first epoch of a run with this seed, as the package's loader makes them."""
        loader = make_loader(
            self.data.train,
            device=self.device,
            levels=self.data.levels,
            seed=self.seed,
            batch_size=self.batch,
            padding=self.padding,
            flip=self.pair.dataset != "digits",
        )
        return list(loader.batches(0))
