"""CIFAR-10 from the official files: `cifar-10-batches-bin` or `cifar-10-batches-py`, already on disk."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch

from ard_fast.data.splits import Dataset, Split, stratified_positions

BIN_DIR, PY_DIR = "cifar-10-batches-bin", "cifar-10-batches-py"
_TRAIN_FILES = tuple(f"data_batch_{k}" for k in range(1, 6))
_TEST_FILE = "test_batch"
_PIXELS = 3 * 32 * 32
_SPLIT_SEED = 2026  # the validation images are the same ones for every training seed


def load_cifar10(data_dir: str | Path, *, val_size: int = 1000) -> Dataset:
    """Read CIFAR-10 and hold `val_size` training images out for validation, class by class.

    The binary layout is taken where both are there (it needs no unpickling).

    Args:
        data_dir: the folder that holds `cifar-10-batches-bin` or `cifar-10-batches-py`, or one of these itself.
        val_size: how many of the training images to hold out, at least 10.

    Raises:
        FileNotFoundError: neither layout is there, or a file of it is missing.
        ValueError: a file is cut short, holds labels outside 0..9, or is a pickle of anything but the official content.
    """
    root = Path(data_dir)
    read, folder = _find_layout(root)
    parts = [read(folder, name) for name in _TRAIN_FILES]
    images, labels = np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])
    most = len(labels) - 10
    if not 10 <= val_size <= most:
        raise ValueError(f"val_size: expected 10 to {most} for {len(labels)} training images, got {val_size}")
    val, train = stratified_positions(labels, [val_size / len(labels)], seed=_SPLIT_SEED)
    source = _split(images, labels)
    test = _split(*read(folder, _TEST_FILE))
    return Dataset("cifar10", source.take(torch.from_numpy(train)), source.take(torch.from_numpy(val)), test, 10, 255)


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)), torch.arange(len(labels)))


def _find_layout(root: Path):
    layouts = ((BIN_DIR, _read_bin), (PY_DIR, _read_py))
    for name, read in layouts:
        for folder in (root / name, root):
            if folder.name == name and folder.is_dir():
                return read, folder
    raise FileNotFoundError(
        f"data_dir: no {BIN_DIR}/ or {PY_DIR}/ in {root} ({'folder exists' if root.is_dir() else 'no such folder'}). "
        "Unpack the official CIFAR-10 archive (binary or python version) there; nothing is downloaded."
    )


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"data_dir: {path} is missing; CIFAR-10 needs data_batch_1 to 5 and test_batch")
    return path


def _checked(images: np.ndarray, labels: np.ndarray, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if labels.size and int(labels.max()) > 9:
        raise ValueError(f"{path}: labels must be 0..9, found {int(labels.max())}; this is not a CIFAR-10 file")
    return np.ascontiguousarray(images.reshape(-1, 3, 32, 32)), labels


def _read_bin(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of one label byte and 3,072 pixel bytes."""
    path = _existing(folder / f"{name}.bin")
    raw = np.fromfile(path, dtype=np.uint8)
    if raw.size == 0 or raw.size % (_PIXELS + 1):
        raise ValueError(f"{path}: {raw.size} bytes is not a positive multiple of {_PIXELS + 1}; is it cut short?")
    records = raw.reshape(-1, _PIXELS + 1)
    return _checked(records[:, 1:], records[:, 0], path)


_PICKLE_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how protocol 2 stores bytes under Python 3
}


class _CifarUnpickler(pickle.Unpickler):
    """Loads numpy arrays and plain containers, nothing else: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str):
        if (module, name) not in _PICKLE_NAMES:
            raise pickle.UnpicklingError(f"refused to load {module}.{name}")
        if name == "_reconstruct":
            return np.ndarray.__reduce__(np.empty(0))[0]  # numpy's own, wherever this version keeps it
        return super().find_class(module, name)


def _read_py(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dict with b"data" (uint8 `[N, 3072]`) and b"labels" (a list of N)."""
    path = _existing(folder / name)
    with open(path, "rb") as file:
        try:
            batch = _CifarUnpickler(file, encoding="bytes").load()
        except Exception as error:  # a damaged pickle fails with almost any exception type
            raise ValueError(f"{path}: not a CIFAR-10 batch ({type(error).__name__}: {error})") from error
    data = batch.get(b"data") if isinstance(batch, dict) else None
    labels = batch.get(b"labels") if isinstance(batch, dict) else None
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != _PIXELS:
        raise ValueError(f"{path}: expected b'data' as uint8 [N, {_PIXELS}], got {_describe(data)}")
    if not isinstance(labels, list) or len(labels) != len(data) or not len(data):
        raise ValueError(f"{path}: expected b'labels' as a list of {len(data)}, got {_describe(labels)}")
    if not all(isinstance(label, int) and 0 <= label <= 9 for label in labels):
        raise ValueError(f"{path}: labels must be whole numbers 0..9; this is not a CIFAR-10 file")
    return _checked(data, np.array(labels, dtype=np.uint8), path)


def _describe(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (list, dict)) else type(value).__name__
