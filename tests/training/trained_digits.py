"""A small network trained on the digits against attacks, for the tests that compare robust accuracies."""

from __future__ import annotations

import torch
import torch.nn.functional as tf
from torch import Tensor, nn

from ard_fast import attacks
from ard_fast.data.splits import load_digits
from ard_fast.models.digits import DigitsNet

IMAGES = 500


def evaluation_images() -> tuple[Tensor, Tensor]:
    """500 images `[500, 1, 8, 8]` that the network has not seen, and their labels: the test split and 50 more."""
    data = load_digits()
    images = torch.cat([data.test.images, data.val.images])[:IMAGES].float() / data.levels
    return images, torch.cat([data.test.labels, data.val.labels])[:IMAGES]


def train_robustly(epochs: int = 12, eps: float = 0.15) -> nn.Module:
    """A `DigitsNet` after some seconds of fast adversarial training (FGSM-RS), in eval mode."""
    torch.manual_seed(0)
    data = load_digits().train
    x, y = data.images.float() / 16, data.labels
    model = DigitsNet().train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.2, total_steps=steps)
    attack = attacks.FGSMRS(eps=eps)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for start in range(0, len(x) - 63, 64):
            chosen = order[start : start + 64]
            x_adv = attack(model, x[chosen], y[chosen], seed=start + 10000 * epoch)
            optimiser.zero_grad()
            tf.cross_entropy(model(x_adv), y[chosen]).backward()
            optimiser.step()
            schedule.step()
    return model.eval()
