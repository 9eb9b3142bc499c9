"""The 1,797 handwritten digits that ship inside scikit-learn: 8x8 pixels of 17 levels, 10 classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ard_fast.data.splits import Dataset, Split, stratified_positions

# Changing either changes every figure ever measured on the digits.
_SPLIT_SEED = 2026
_TEST_SHARE, _VAL_SHARE = 0.25, 0.15


def load_digits(only: str | None = None) -> Dataset:
    """The digits cut once and for all, class by class: test 450, validation 269, train 1,078 images.

    Args:
        only: as in `load_dataset`.
    """
    from sklearn.datasets import load_digits as sklearn_digits  # slow to import, and only needed here

    source: Any = sklearn_digits()
    test, val, train = (
        torch.from_numpy(part)
        for part in stratified_positions(source.target, [_TEST_SHARE, _VAL_SHARE], seed=_SPLIT_SEED)
    )
    images = torch.from_numpy(source.images.astype(np.uint8)).unsqueeze(1)  # 0..16, exact
    everything = Split(images, torch.from_numpy(source.target.astype(np.int64)), torch.arange(len(images)))
    parts = {"train": everything.take(train), "val": everything.take(val), "test": everything.take(test)}
    return Dataset.of("digits", parts, only, num_classes=10, levels=16)
