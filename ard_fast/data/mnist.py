"""MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017) from their IDX files, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from ard_fast.data.names import FASHION_MNIST_CLASSES, MNIST_CLASSES
from ard_fast.data.splits import Dataset, Split, of_files

_MAX_BYTES = 1 << 30  # of a file's content; the largest official one has 47 MB
_MOST_PER_PACKED_BYTE = 1032  # what deflate cannot exceed
_CHUNK = 1 << 20
_SIDE = 28


@dataclass(frozen=True)
class Variant:
    """One of the two data sets, whose files have the same names.

    Attributes:
        name: as in `load_dataset`.
        folders: where in the data folder the files may lie, best first; the first as torchvision has it.
        class_names: by label.
    """

    name: str
    folders: tuple[str, ...]
    class_names: tuple[str, ...]


MNIST = Variant("mnist", ("MNIST/raw", "mnist", "."), MNIST_CLASSES)
FASHION_MNIST = Variant("fashion-mnist", ("FashionMNIST/raw", "fashion-mnist", "."), FASHION_MNIST_CLASSES)
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load_mnist(
    variant: Variant, data_dir: str | Path, *, val_size: int | None = None, only: str | None = None
) -> Dataset:
    """Read one of the two and hold `val_size` training images out for validation, class by class.

    Images are uint8 `[N, 1, 28, 28]`, as in the files: no padding to 32x32.

    Args:
        variant: `MNIST` or `FASHION_MNIST`. The files do not say which of the two they are.
        data_dir: the folder with the four IDX files, plain or `.gz`, or with one of `variant.folders` in it.
        val_size: how many of the training images to hold out, at least 10; None as in `load_dataset`.
        only: as in `load_dataset`; the files of the other splits are not read.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is cut short, too long, damaged, or not what its name says.
    """
    root = Path(data_dir)
    folder = next((root / name for name in variant.folders if holds_files(root / name)), None)
    if folder is None:
        state = "folder exists" if root.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"data_dir: no {FILES[0]} or {FILES[0]}.gz in {root} ({state}), nor in {' or '.join(variant.folders[:-1])} "
            f"there. Put the four IDX files of {variant.name} there, or let --download fetch them."
        )
    return of_files(
        variant.name,
        lambda: _read_split(folder, *FILES[:2]),
        lambda: _read_split(folder, *FILES[2:]),
        val_size=val_size,
        only=only,
        class_names=variant.class_names,
    )


def holds_files(folder: Path) -> bool:
    """Whether any of the four files is in a folder."""
    return any((folder / f"{file}{suffix}").is_file() for file in FILES for suffix in ("", ".gz"))


def _read_split(folder: Path, images_name: str, labels_name: str) -> Split:
    images_path, images = _read_idx(folder, images_name, (_SIDE, _SIDE))
    labels_path, labels = _read_idx(folder, labels_name, ())
    if len(images) != len(labels):
        raise ValueError(f"{images_path}: {len(images)} images, but {labels_path} has {len(labels)} labels")
    if int(labels.max()) > 9:
        raise ValueError(f"{labels_path}: labels must be 0..9, found {int(labels.max())}")
    return Split(
        torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels.astype(np.int64)), torch.arange(len(labels))
    )


def _read_idx(folder: Path, name: str, item: tuple[int, ...]) -> tuple[Path, np.ndarray]:
    """The path taken and the uint8 array `[N, *item]` of an IDX file (magic number, sizes, content, big-endian)."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"data_dir: {folder / name} (or .gz) is missing; four files are needed: {FILES}")
    with open(path, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            stream = gzip.GzipFile(fileobj=file) if packed else file
            most = path.stat().st_size * (_MOST_PER_PACKED_BYTE if packed else 1)
            return path, _read_array(cast("BinaryIO", stream), item, most)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise ValueError(f"{path}: not a whole IDX file ({error})") from error


def _read_array(stream: BinaryIO, item: tuple[int, ...], most: int) -> np.ndarray:
    dimensions = 1 + len(item)
    header = stream.read(4 + 4 * dimensions)
    magic = bytes((0, 0, 8, dimensions))  # 8: unsigned bytes
    if header[:4] != magic:
        raise ValueError(f"expected it to begin with {magic.hex()}, got {header[:4].hex() or 'nothing'}")
    if len(header) < 4 + 4 * dimensions:
        raise ValueError("cut short in its header")
    shape = tuple(int(size) for size in np.frombuffer(header, ">u4", offset=4))
    if shape[0] == 0 or shape[1:] != item:
        raise ValueError(f"expected {' x '.join(('N', *map(str, item)))} with N above 0, got {list(shape)}")
    size = math.prod(shape)
    if size > min(most, _MAX_BYTES):  # before anything of that size is asked for
        raise ValueError(f"its header promises {size} bytes, more than the file can hold or than {_MAX_BYTES}")
    content = bytearray()
    while len(content) < size and (chunk := stream.read(min(_CHUNK, size - len(content)))):
        content += chunk
    if len(content) < size:
        raise ValueError(f"its header promises {size} bytes, it holds {len(content)}")
    if stream.read(1):
        raise ValueError(f"bytes beyond the {size} that its header promises")
    return np.frombuffer(content, np.uint8).reshape(shape)
