"""Extra training images, such as generated ones, of which every batch holds a share (Gowal et al., NeurIPS 2021)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from ard_fast.data.npz import channels_first, read_arrays
from ard_fast.data.splits import Dataset, Split

FIRST_ID = 1 << 40  # of extra images: no image of a data set has such an id


def add_extra(dataset: Dataset, path: str | Path) -> Dataset:
    """The data set with the images of an `.npz` file behind its training images, in memory (`Dataset.pool`).

    The file is as DM-Improves-AT (Wang et al., ICML 2023) publishes them: `image`, uint8 `[M, H, W, C]`, `[M, C, H, W]`
    or `[M, H, W]`, and `label`, whole numbers `[M]`. Nothing is unpickled. While it is read its images are in memory
    twice: 6 GB for a million of 32x32 pixels.

    Args:
        dataset: on the host.
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or its images or labels are not like those of the data set.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"extra_data: expected the path of an .npz file, no such file: {path}")
    try:
        arrays = read_arrays(path, lambda names: ["image", "label"])
        images, labels = channels_first(path, "image", arrays["image"]), arrays["label"]
    except ValueError as error:
        raise ValueError(f"extra_data: {error}") from error
    train, shape = dataset.train, images.shape[1:]
    wrong = None
    if shape != dataset.image_shape:
        wrong = f"expected images of {list(dataset.image_shape)} (C, H, W) as in {dataset.name}, got {list(shape)}"
    elif len(labels) != len(images):
        wrong = f"expected a label for each of the {len(images)} images, got {len(labels)}"
    elif labels.min() < 0 or labels.max() >= dataset.num_classes:
        wrong = f"expected labels 0 to {dataset.num_classes - 1}, got {labels.min()} to {labels.max()}"
    elif dataset.levels < 255 and images.max() > dataset.levels:
        wrong = f"expected pixels 0 to {dataset.levels} as in {dataset.name}, got {images.max()}"
    if wrong:
        raise ValueError(f"extra_data: {path}: {wrong}")
    pixels = torch.empty(len(train) + len(labels), *shape, dtype=torch.uint8)
    pixels[: len(train)] = train.images
    np.copyto(pixels[len(train) :].numpy(), images)
    pool = Split(
        pixels,
        torch.cat((train.labels, torch.from_numpy(labels.astype(np.int64)))),
        torch.cat((train.ids, FIRST_ID + torch.arange(len(labels)))),
    )
    return dataclasses.replace(dataset, train=pool.part(0, len(train)), pool=pool)
