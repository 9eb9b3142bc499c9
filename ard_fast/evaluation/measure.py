"""Clean and robust accuracy of a network on a split, as the trainer measures it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ard_fast._devices import full_precision
from ard_fast.attacks import PGD, as_graph, attack_mode
from ard_fast.data import Split
from ard_fast.data.batches import share_bounds
from ard_fast.data.splits import pixels
from ard_fast.evaluation.results import check_not_empty

PGD20_STEPS = 20


class Accuracy(NamedTuple):
    """Accuracies in percent."""

    clean: float
    robust: float


def at_chance(accuracy: float, images: int, num_classes: int) -> bool:
    """Whether an accuracy, in percent, is no better than guessing.

    That is within three standard deviations of 1 / C or, with five classes or more, below 2 / C, which networks with
    random weights reach on some data.
    """
    chance = 1.0 / num_classes
    limit = chance + 3.0 * math.sqrt(chance * (1.0 - chance) / images)
    return accuracy <= 100.0 * (max(limit, 2.0 * chance) if num_classes >= 5 else limit)


def evaluate(
    model: nn.Module,
    split: Split,
    *,
    levels: int,
    attack: PGD,
    seed: int = 0,
    batch_size: int = 500,
    channels_last: bool = False,
    between_batches: Callable[[], None] | None = None,
    shard: tuple[int, int] = (0, 1),
    all_reduce: Callable[[Tensor], Tensor] = lambda value: value,
) -> Accuracy:
    """The share of images classified correctly, clean and under `attack`: what the trainer measures.

    The network is evaluated in eval mode, in float32 without TF32 or autocast. Its modes, gradients and batch-norm
    statistics and the random state are unchanged afterwards. The result does not depend on `batch_size`, up to the
    rounding of the network itself: each image's random start is keyed by (seed, its id).

    Args:
        model: gives logits `[B, num_classes]` of pixels in [0, 1].
        split: images uint8 `[N, C, H, W]`, on the model's device.
        levels: the uint8 value that stands for 1.0.
        attack: made with `bn="eval"`. On CUDA it runs as a graph, whose memory is free again at the end.
        seed: of the attack's random start.
        batch_size: images a batch.
        channels_last: give the network images in that layout.
        between_batches: called before each batch, equally often in every process; may raise, to stop.
        shard: (rank, processes): this process evaluates one contiguous part of the split.
        all_reduce: sums a tensor over the processes; every process then returns the accuracy on the whole split.

    Raises:
        ValueError: the split is empty.
    """
    check_not_empty(split)
    device = split.images.device
    layout = torch.channels_last if channels_last else torch.contiguous_format
    seed_tensor = torch.tensor([seed], dtype=torch.int64, device=device)
    correct = torch.zeros(2, dtype=torch.int64, device=device)
    first, end = share_bounds(len(split), *shard)
    largest = share_bounds(len(split), 0, shard[1])[1]
    attack = as_graph(attack)
    with full_precision(), attack_mode(model, "eval"):
        for offset in range(0, largest, batch_size):
            if between_batches is not None:
                between_batches()
            chosen = slice(first + offset, min(first + offset + batch_size, end))
            if chosen.start >= chosen.stop:
                continue
            x = pixels(split.images[chosen], levels).contiguous(memory_format=layout)
            y, ids = split.labels[chosen], split.ids[chosen]
            adversarial = attack(model, x, y, seed=seed_tensor, sample_ids=ids)
            with torch.no_grad():
                for row, images in enumerate((x, adversarial)):
                    correct[row] += (model(images).argmax(1) == y).sum()
    clean, robust = all_reduce(correct).tolist()
    return Accuracy(100.0 * clean / len(split), 100.0 * robust / len(split))
