"""Images and labels from a NumPy `.npz` file."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ard_fast.data.splits import Dataset, Split, hold_out

_PARTS = ("train", "test", "val")
_CHANNELS = (1, 3)


def load_npz(path: str | Path, *, val_size: int | None = None, only: str | None = None) -> Dataset:
    """Read a file that holds x_train, y_train, x_test, y_test and perhaps x_val, y_val; nothing is unpickled.

    Images are uint8, 0 to 255, `[N, H, W]`, `[N, H, W, C]` or `[N, C, H, W]` with C 1 or 3. Labels are whole numbers
    `[N]`; the training labels must hold every class from 0 to the highest.

    Args:
        path: the file.
        val_size: how many training images to hold out, class by class, where the file has no x_val; at least the
            number of classes; None as in `load_dataset`.
        only: as in `load_dataset`; the arrays of the other splits need not be there. Without y_train the classes are
            counted by the highest label there is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, lacks an array, or an array is not as above.
    """
    path = Path(path)
    if not path.is_file():
        found = sorted(entry.name for entry in path.glob("*.npz")) if path.is_dir() else []
        hint = f"; it is a folder with {', '.join(found[:5])}" if found else ""
        raise FileNotFoundError(f"data_dir: expected the path of an .npz file, no such file: {path}{hint}")
    arrays = read_arrays(path, lambda names: _choose(names, only))
    splits = {part: _split(path, part, arrays) for part in _PARTS if f"x_{part}" in arrays}
    labels = {part: split.labels for part, split in splits.items()}
    if "y_train" in arrays and "train" not in splits:
        labels["train"] = torch.from_numpy(arrays["y_train"].astype(np.int64))
    num_classes = _count_classes(path, labels)
    shapes = {part: tuple(split.images.shape[1:]) for part, split in splits.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"{path}: images of one shape expected in all parts, got (C, H, W) of {shapes}")
    if "val" not in splits and only in (None, "val", "train"):
        splits["train"], splits["val"] = hold_out(splits["train"], val_size, num_classes=num_classes)
    return Dataset.of("npz", splits, only, num_classes=num_classes, levels=255, classes_known="train" in labels)


def _split(path: Path, part: str, arrays: dict[str, np.ndarray]) -> Split:
    images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"{path}: y_{part} must hold one label for each of the {len(images)} images of x_{part}, "
            f"shape [{len(images)}], got {list(labels.shape)}"
        )
    images = np.ascontiguousarray(channels_first(path, f"x_{part}", images))
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), torch.arange(len(labels)))


def channels_first(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    """The images as `[N, C, H, W]`, in the same memory.

    Raises:
        ValueError: it does not show which dimension the channels are; names the file and the array.
    """
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    if first == last:
        problem = "both ends could be the channels" if first else "neither end has 1 or 3 channels"
        raise ValueError(
            f"{path}: {name} must be [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3, got {list(images.shape)}, "
            f"where {problem}"
        )
    return images if first else images.transpose(0, 3, 1, 2)


def _count_classes(path: Path, labels: dict[str, torch.Tensor]) -> int:
    for part, values in labels.items():
        if int(values.min()) < 0:
            raise ValueError(f"{path}: y_{part} must hold labels from 0 on, found {int(values.min())}")
    if "train" not in labels:
        return max(2, *(int(values.max()) + 1 for values in labels.values()))
    present = torch.unique(labels["train"])
    count = len(present)
    if int(present[-1]) != count - 1:
        absent = next(label for label, value in enumerate(present.tolist()) if label != value)
        raise ValueError(
            f"{path}: y_train must hold every class from 0 to the highest, {int(present[-1])}; class {absent} is absent"
        )
    if count < 2:
        raise ValueError(f"{path}: y_train must hold at least 2 classes, found only class 0")
    for part, values in labels.items():
        if int(values.max()) >= count:
            raise ValueError(f"{path}: y_{part} holds class {int(values.max())}, y_train only 0 to {count - 1}")
    return count


def read_arrays(path: Path, choose: Callable[[list[str]], list[str]]) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file that `choose` picks from its names, by name; those of images begin with x or image.

    Raises:
        ValueError: the file is damaged, lacks one of them, or one is not of images or labels.
    """
    try:
        zipfile.ZipFile(path).close()  # np.load would take any other file for a pickle, and advise to run it
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            names = file.files
            chosen = choose(names)
            arrays = {name: file[name] for name in chosen if name in names}
    except Exception as error:  # a damaged zip file fails with almost any exception type
        raise ValueError(f"{path}: not a whole .npz file ({type(error).__name__}: {error})") from error
    missing = [name for name in chosen if name not in arrays]
    if missing:
        there = ", ".join(sorted(names)[:20]) or "nothing"
        raise ValueError(f"{path}: {missing[0]} is missing; the file holds {there}")
    for name, array in arrays.items():
        problem = _problem(name, array)
        if problem is not None:
            raise ValueError(f"{path}: {name}: {problem}, got {array.dtype} {list(array.shape)}")
    return arrays


def _choose(names: list[str], only: str | None) -> list[str]:
    """The arrays that `only` needs; the labels of the training images too where they are there."""
    own_val = "x_val" in names or "y_val" in names
    needed = {
        "train": only in (None, "train") or (only == "val" and not own_val),
        "test": only in (None, "test"),
        "val": own_val and only != "test",
    }
    chosen = [f"{kind}_{part}" for part in _PARTS if needed[part] for kind in "xy"]
    if not needed["train"] and "y_train" in names:  # it says how many classes there are
        chosen.append("y_train")
    return chosen


def _problem(name: str, array: np.ndarray) -> str | None:
    """What is wrong with the type or shape of an array."""
    if 0 in array.shape:
        return "expected at least one image of at least one pixel"
    if name.startswith(("x_", "image")):
        if array.dtype != np.uint8:
            return "expected uint8 images, 0 to 255"
        return None if array.ndim in (3, 4) else "expected [N, H, W], [N, H, W, C] or [N, C, H, W]"
    if array.dtype.kind not in "iu":
        return "expected whole-numbered labels"
    return None if array.ndim == 1 else "expected one label an image, [N]"
