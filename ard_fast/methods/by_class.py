"""Sums of a batch's figures, class by class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as tf


def sums_by_class(rows: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Sums of `rows` `[K, B]` over the samples of each class: float64 `[K + 1, C]`, the classes' counts last.

    A product with the labels' indicator: the order of summation is fixed, on a GPU too, and nothing waits for it.
    """
    # not one_hot, which looks at the labels on a CPU and so cannot be part of a recorded step
    indicator = (labels[:, None] == torch.arange(num_classes, device=labels.device)).double()
    counted = tf.pad(rows.detach().double(), (0, 0, 0, 1), value=1.0)
    return counted @ indicator
