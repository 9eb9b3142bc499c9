"""CIFAR-10 and CIFAR-100 from the official files, binary or python version (Krizhevsky 2009)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ard_fast.data.cifar_pickle import MAX_BYTES, read_pickle
from ard_fast.data.names import CIFAR10_CLASSES, CIFAR100_CLASSES
from ard_fast.data.splits import Dataset, Split, of_files

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Variant:
    """One of the two data sets.

    Attributes:
        name: as in `load_dataset`.
        title: as its authors write it.
        bin_dir, py_dir: the folders in the official archives.
        train, test: file names without extension.
        label_bytes: the label bytes at the head of a binary record; the last one is the class.
        label_key: of the labels in a python file.
        class_names: by label.
    """

    name: str
    title: str
    bin_dir: str
    py_dir: str
    train: tuple[str, ...]
    test: str
    label_bytes: int
    label_key: bytes
    class_names: tuple[str, ...]


CIFAR10 = Variant(
    "cifar10",
    "CIFAR-10",
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    tuple(f"data_batch_{k}" for k in range(1, 6)),
    "test_batch",
    1,
    b"labels",
    CIFAR10_CLASSES,
)
CIFAR100 = Variant(
    "cifar100",
    "CIFAR-100",
    "cifar-100-binary",
    "cifar-100-python",
    ("train",),
    "test",
    2,  # the coarse label of 20, then the fine one
    b"fine_labels",
    CIFAR100_CLASSES,
)


def load_cifar10(data_dir: str | Path, *, val_size: int | None = None, only: str | None = None) -> Dataset:
    """Read CIFAR-10 and hold `val_size` training images out for validation, class by class.

    The binary layout is taken where both are there (it needs no unpickling).

    Args:
        data_dir: the folder that holds `cifar-10-batches-bin` or `cifar-10-batches-py`, or one of these itself.
        val_size: how many of the training images to hold out, at least 10; None as in `load_dataset`.
        only: as in `load_dataset`; the files of the other splits are not read.

    Raises:
        FileNotFoundError: neither layout is there, or a file of it is missing.
        ValueError: a file is cut short, holds labels outside 0..9, or is a pickle of anything but the official content.
    """
    return _load(CIFAR10, Path(data_dir), val_size, only)


def load_cifar100(data_dir: str | Path, *, val_size: int | None = None, only: str | None = None) -> Dataset:
    """Read CIFAR-100 with its 100 fine labels; as `load_cifar10` in everything else.

    Args:
        data_dir: the folder that holds `cifar-100-binary` or `cifar-100-python`, or one of these itself.
        val_size: how many of the training images to hold out, at least 100; None as in `load_dataset`.
        only: as `load_cifar10`.

    Raises:
        FileNotFoundError, ValueError: as `load_cifar10`.
    """
    return _load(CIFAR100, Path(data_dir), val_size, only)


def _load(variant: Variant, root: Path, val_size: int | None, only: str | None) -> Dataset:
    layout = find_layout(variant, root)
    if layout is None:
        state = "folder exists" if root.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"data_dir: no {variant.bin_dir}/ or {variant.py_dir}/ in {root} ({state}). Unpack the official "
            f"{variant.title} archive (binary or python version) there, or let --download fetch it."
        )
    read, folder = layout

    def training() -> Split:
        parts = [read(variant, folder, name) for name in variant.train]
        return _split(np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts]))

    return of_files(
        variant.name,
        training,
        lambda: _split(*read(variant, folder, variant.test)),
        val_size=val_size,
        only=only,
        class_names=variant.class_names,
    )


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), torch.arange(len(labels)))


_Reader = Callable[[Variant, Path, str], tuple[np.ndarray, np.ndarray]]


def find_layout(variant: Variant, root: Path) -> tuple[_Reader, Path] | None:
    """The reader and the folder of the layout to take, if one is there."""
    layouts: tuple[tuple[str, _Reader], ...] = ((variant.bin_dir, _read_bin), (variant.py_dir, _read_py))
    for name, read in layouts:
        for folder in (root / name, root):
            if folder.name == name and folder.is_dir():
                return read, folder
    return None


def _existing(variant: Variant, path: Path) -> Path:
    if not path.is_file():
        needed = ", ".join((*variant.train, variant.test))
        raise FileNotFoundError(f"data_dir: {path} is missing; {variant.title} needs {needed}")
    return path


def _read_bin(variant: Variant, folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of one or two label bytes and 3,072 pixel bytes."""
    path = _existing(variant, folder / f"{name}.bin")
    size, record = path.stat().st_size, variant.label_bytes + _PIXELS
    if size == 0 or size % record or size > MAX_BYTES:
        raise ValueError(
            f"{path}: {size} bytes is not a positive multiple of {record} of at most {MAX_BYTES}; is it cut short?"
        )
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, record)
    labels = records[:, variant.label_bytes - 1]
    highest = len(variant.class_names) - 1
    if int(labels.max()) > highest:
        raise ValueError(
            f"{path}: labels must be 0..{highest}, found {int(labels.max())}; this is not a {variant.title} file"
        )
    return _as_images(records[:, variant.label_bytes :]), labels


def _read_py(variant: Variant, folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dict with b"data" (uint8 `[N, 3072]`) and the labels (a list of N)."""
    path = _existing(variant, folder / name)
    batch = read_pickle(path)
    data = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(variant.label_key) if isinstance(batch, dict) else None
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise ValueError(f"{path}: expected b'data' as uint8 [N, {_PIXELS}], got {_describe(data)}")
    if not isinstance(labels, list) or len(labels) != len(data) or not len(data):
        raise ValueError(f"{path}: expected {variant.label_key!r} as a list of {len(data)}, got {_describe(labels)}")
    highest = len(variant.class_names) - 1
    if not all(isinstance(label, int) and 0 <= label <= highest for label in labels):
        raise ValueError(f"{path}: labels must be whole numbers 0..{highest}; this is not a {variant.title} file")
    return _as_images(data), np.array(labels, dtype=np.uint8)


def _as_images(rows: np.ndarray) -> np.ndarray:
    return np.require(rows, requirements=["C", "W"]).reshape(-1, 3, 32, 32)


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (list, dict)) else type(value).__name__
