"""Images of torch data sets and loaders, read once into memory."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler

from ard_fast.data.splits import Dataset, Split
from ard_fast.models.trial import reason

_READ, _LOOKED_AT = 500, 8  # images at once; images that are read twice
_ROUNDED = 1e-4  # from which on a warning says so
_NORMALISED = (
    "Normalised images? Leave the normalisation out of the transform and give it as student_mean and student_std "
    "(teacher_mean and teacher_std of a teacher)"
)


def read_dataset(train: Any, test: Any, val: Any = None) -> Dataset:
    """A data set of pairs of an image and a label, read in order.

    Args:
        train: a map-style data set or a loader; images are tensors or arrays `[C, H, W]` of one shape, uint8, or
            floating in [0, 1], which are rounded to the 256 levels of uint8. A loader that only shuffles is read in the
            order of its data set, whose `classes`, if any, name the classes.
        test: likewise.
        val: likewise; None leaves the split empty.

    Raises:
        ValueError: names the split, what was expected and what came.
    """
    given = {"train": train, "val": val, "test": test}
    parts = {name: _read(data, name) for name, data in given.items() if data is not None}
    shapes = {name: tuple(split.images.shape[1:]) for name, split in parts.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"train: expected images of one shape in all splits, got (C, H, W) of {shapes}")
    highest = max(int(split.labels.max()) for split in parts.values())
    source = train
    while hasattr(source, "dataset"):  # inside of loaders and subsets
        source = source.dataset
    names = getattr(source, "classes", None)
    names = tuple(map(str, names)) if isinstance(names, (list, tuple)) and len(names) > max(highest, 1) else ()
    count = len(names) or max(highest + 1, 2)
    return Dataset.of(type(source).__name__, parts, num_classes=count, levels=255, class_names=names)


def _read(data: Any, name: str) -> Split:
    loader, images, labels, rounded = _in_order(data, name), [], [], 0.0
    try:
        for batch in loader:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                kind = f"{type(batch).__name__} of {len(batch)}" if hasattr(batch, "__len__") else type(batch).__name__
                raise ValueError(f"expected pairs of image and label, got {kind}")
            levels, off = _eight_bits(torch.as_tensor(batch[0]))
            images.append(levels)
            rounded = max(rounded, off)
            labels.append(_labels(torch.as_tensor(batch[1])))
        if not images:
            raise ValueError("it is empty")
        pixels, classes = torch.cat(images), torch.cat(labels)
        if len(pixels) != len(classes):
            raise ValueError(f"expected a label for each image, got {len(classes)} for {len(pixels)}")
    except Exception as error:  # somebody else's code
        hint = "; images must be tensors: end the transform with ToTensor()" if "PIL" in str(error) else ""
        said = str(error) if type(error) is ValueError else f"cannot be read ({reason(error)})"
        raise ValueError(f"{name}: {said}{hint}") from error
    if rounded > _ROUNDED:
        warnings.warn(f"{name}: pixels are rounded to 256 levels, by up to {rounded:.2g}", stacklevel=4)
    return Split(pixels, classes, torch.arange(len(classes)))


def _in_order(data: Any, name: str) -> Any:
    """What gives the batches; a second reading, as of a run that goes on, gives the same ones."""
    source: Any = data.dataset if isinstance(data, DataLoader) else data
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        pairs = ([source[index][0] for _ in range(2)] for index in range(min(_LOOKED_AT, len(source))))
        if any(
            isinstance(one, Tensor) and not torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in pairs
        ):
            raise ValueError(
                f"{name}: an image differs each time it is read; leave random transforms out: the trainer crops and "
                "flips (crop_padding, flip)"
            )
        if not isinstance(data, DataLoader):
            return DataLoader(data, batch_size=_READ)
        # A batch sampler that was given to the loader has one of its own.
        sampler = data.sampler if data.batch_sampler is None else getattr(data.batch_sampler, "sampler", None)
        if isinstance(sampler, (RandomSampler, SequentialSampler)) and len(sampler) == len(source):
            return DataLoader(source, batch_size=_READ, collate_fn=data.collate_fn, num_workers=data.num_workers)
    if not hasattr(data, "__iter__"):
        raise ValueError(f"{name}: expected a map-style data set or a loader, got {type(data).__name__}")
    return data


def _eight_bits(x: Tensor) -> tuple[Tensor, float]:
    """uint8 `[B, C, H, W]`, and by how much pixels in [0, 1] were rounded."""
    if x.dim() != 4 or (x.shape[1] > 4 >= x.shape[3]):
        raise ValueError(f"expected images [C, H, W], channels first, got {list(x.shape[1:])}")
    if x.dtype == torch.uint8:
        return x, 0.0
    if not x.is_floating_point():
        raise ValueError(f"expected images in uint8, or floating in [0, 1], got {x.dtype}")
    low, high = x.min().item(), x.max().item()
    if not (low >= 0.0 and high <= 1.0):
        hint = _NORMALISED if high < 30 else "Divide them by their largest value"
        raise ValueError(f"expected pixels in [0, 1], got {low:.3g} to {high:.3g}. {hint}")
    levels = (x.float() * 255.0).round()
    return levels.to(torch.uint8), (levels / 255.0 - x).abs().max().item()


def _labels(y: Tensor) -> Tensor:
    """int64 `[B]`."""
    if y.dim() != 1 or y.is_floating_point() or y.dtype == torch.bool or int(y.min()) < 0:
        least = f", least {y.min().item()}" if y.numel() else ""
        raise ValueError(f"expected labels that are whole numbers from 0, got {y.dtype} of {list(y.shape)}{least}")
    return y.to(torch.int64)
