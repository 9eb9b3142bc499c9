"""Networks and images that bench_attacks.py attacks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ard_fast.attacks import PGD
from ard_fast.data import load_dataset
from ard_fast.models import build_model

TRAIN_EPOCHS, TRAIN_BATCH, TRAIN_STEPS, TRAIN_RATE = 6, 64, 3, 0.05


@dataclass
class Victim:
    """A network in eval mode, images, and the labels that it gives them.

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
    optimizer = torch.optim.SGD(model.parameters(), lr=TRAIN_RATE, momentum=0.9, weight_decay=2e-4)
    attack = PGD(eps=eps, step_size=eps / 2, steps=TRAIN_STEPS)
    for epoch in range(TRAIN_EPOCHS):
        for chosen in torch.randperm(len(images)).split(TRAIN_BATCH):
            x, y = images[chosen.to(device)], labels[chosen.to(device)]
            x_adv = attack(model, x, y, seed=epoch)
            model.train()
            loss = nn.functional.cross_entropy(model(x_adv), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    model.zero_grad(set_to_none=True)
    x, y = (data.test.images.float() / data.levels).to(device), data.test.labels.to(device)
    with torch.no_grad():
        right = (model(x).argmax(1) == y).nonzero()[:, 0]
    if len(right) < batch:
        raise ValueError(f"--batch: expected at most {len(right)} for digits, got {batch}")
    return Victim(model, x[right[:batch]], y[right[:batch]], eps, eps_l2=1.0, trained=True)


def cifar(name: str, batch: int, device: torch.device) -> Victim:
    """A network for 32x32 images with initial weights and settled batch-norm statistics, and random images."""
    torch.manual_seed(0)
    model = build_model(name).to(device)
    with torch.no_grad():
        model.train()
        for _ in range(20):
            model(torch.rand(32, 3, 32, 32, device=device))
        model.eval()
        x = torch.rand(batch, 3, 32, 32, device=device)
        y = model(x).argmax(1)
    return Victim(model, x, y, eps=8 / 255, eps_l2=0.5, trained=False)
