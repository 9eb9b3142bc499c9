"""A network and attacks whose outcome is known, for the tests of evaluations."""

import torch
from torch import nn

from ard_fast.data import Split
from ard_fast.evaluation.results import Step

LEVELS = 10


class FirstPixel(nn.Module):
    """Class 1 where the first pixel is above one half, else class 0; `classes` logits, linear in that pixel."""

    def __init__(self, classes=2):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.classes = classes

    def forward(self, x):
        score = 4.0 * (x.flatten(1)[:, 0] - 0.5) * self.weight
        low = torch.full_like(score, -9.0)
        return torch.stack([-score, score, *[low] * (self.classes - 2)], dim=1)


def dark_images(count=10, wrong=()):
    """Images whose first pixel is 0.3 (class 0); those at the positions `wrong` carry the label 1. Ids 100, 101, ..."""
    images = torch.full((count, 1, 4, 4), 3, dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    labels[list(wrong)] = 1
    return Split(images, labels, torch.arange(100, 100 + count))


class Lighten:
    """Sets the first pixel of the images with these ids to `to`, and remembers which images it was given."""

    def __init__(self, ids, to=0.6, name=None):
        self.ids, self.to, self.name, self.given = set(ids), to, name, []

    def __repr__(self):
        return self.name or f"Lighten({sorted(self.ids)}, {self.to}, {id(self)})"

    def __call__(self, model, x, y, *, seed, sample_ids):
        self.given += sample_ids.tolist()
        x_adv = x.clone()
        hit = torch.tensor([sample in self.ids for sample in sample_ids.tolist()])
        x_adv[hit, :, 0, 0] = self.to
        return x_adv


def single(name, attack):
    return Step(name, ((name, attack),))
