"""Images and labels from a NumPy `.npz` file."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import torch

from ard_fast.data.splits import Dataset, Split, hold_out

_PARTS = ("train", "test", "val")
_CHANNELS = (1, 3)
_MAX_HEADER = 10_000  # characters; an honest header has about a hundred
_CHUNK = 1 << 20
# Photographs and drawings pack a few times, tenfold at most. A file that unpacks to much more is a bomb.
_MOST_EXPANSION, _ALWAYS_FINE = 100, 1 << 28


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
    arrays = _read_arrays(path, only)
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
    images = _channels_first(path, f"x_{part}", images)
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), torch.arange(len(labels)))


def _channels_first(path: Path, name: str, images: np.ndarray) -> np.ndarray:
    """uint8 `[N, C, H, W]`, contiguous."""
    if images.ndim == 3:
        return np.ascontiguousarray(images[:, None])
    first, last = images.shape[1] in _CHANNELS, images.shape[3] in _CHANNELS
    if first == last:
        problem = "both ends could be the channels" if first else "neither end has 1 or 3 channels"
        raise ValueError(
            f"{path}: {name} must be [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3, got {list(images.shape)}, "
            f"where {problem}"
        )
    return np.ascontiguousarray(images if first else images.transpose(0, 3, 1, 2))


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


class _Refused(Exception):
    """What is wrong with a file that is a whole .npz file."""


def _read_arrays(path: Path, only: str | None) -> dict[str, np.ndarray]:
    """The arrays that are needed, by name; with `only`, the labels of the training images too where they are there."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = _choose(archive, only)
            unpacked, packed = sum(info.file_size for info in members.values()), path.stat().st_size
            if unpacked > max(_ALWAYS_FINE, _MOST_EXPANSION * packed):
                raise _Refused(f"{packed} bytes would unpack to {unpacked}; images do not pack that well")
            return {name: _read_array(archive, name, info) for name, info in members.items()}
    except _Refused as error:
        raise ValueError(f"{path}: {error}") from None
    except Exception as error:  # a damaged zip file fails with almost any exception type
        raise ValueError(f"{path}: not a whole .npz file ({type(error).__name__}: {error})") from error


def _choose(archive: zipfile.ZipFile, only: str | None) -> dict[str, zipfile.ZipInfo]:
    names = [info.filename for info in archive.infolist()]
    own_val = "x_val.npy" in names or "y_val.npy" in names
    needed = {
        "train": only in (None, "train") or (only == "val" and not own_val),
        "test": only in (None, "test"),
        "val": own_val and only != "test",
    }
    chosen = [f"{kind}_{part}" for part in _PARTS if needed[part] for kind in "xy"]
    if not needed["train"] and "y_train.npy" in names:  # it says how many classes there are
        chosen.append("y_train")
    for name in chosen:
        count = names.count(f"{name}.npy")
        if count > 1:
            raise _Refused(f"{name} is in the file {count} times")
        if not count:
            there = ", ".join(name.removesuffix(".npy") for name in sorted(names)[:20]) or "nothing"
            raise _Refused(f"{name} is missing; the file holds {there}")
    infos = {name: archive.getinfo(f"{name}.npy") for name in chosen}
    for name, info in infos.items():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise _Refused(f"{name}: packed by method {info.compress_type}, which NumPy does not write")
    return infos


def _read_array(archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> np.ndarray:
    """An array of uint8 images or whole-numbered labels; its size is held against the file's before it is made."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise _Refused(f"{name}: unknown .npy version {version}")
        shape, fortran, dtype = readers[version](stream, max_header_size=_MAX_HEADER)
        _check_kind(name, shape, dtype)
        size = math.prod(shape) * dtype.itemsize
        if size != info.file_size - stream.tell():
            raise _Refused(f"{name}: its header promises {size} bytes, the file has {info.file_size - stream.tell()}")
        content = bytearray()
        while chunk := stream.read(_CHUNK):  # to the end, where zipfile checks the checksum
            content += chunk
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _check_kind(name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if name.startswith("x_"):
        if dtype != np.uint8:
            raise _Refused(f"{name}: expected uint8 images, 0 to 255, got {dtype}")
        if len(shape) not in (3, 4):
            raise _Refused(f"{name}: expected [N, H, W], [N, H, W, C] or [N, C, H, W], got {list(shape)}")
    else:
        if dtype.kind not in "iu":
            raise _Refused(f"{name}: expected whole-numbered labels, got {dtype}")
        if len(shape) != 1:
            raise _Refused(f"{name}: expected one label an image, [N], got {list(shape)}")
    if any(size < 1 for size in shape):
        raise _Refused(f"{name}: expected at least one image of at least one pixel, got {list(shape)}")
