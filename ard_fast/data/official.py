"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), MNIST (LeCun et al. 1998) and Fashion-MNIST (Xiao et al. 2017) from the
files as they are published, and what their labels mean."""

from __future__ import annotations

import gzip
import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ard_fast.data.splits import Dataset, Split, of_files

_PIXELS = 3 * 32 * 32
_SIDE = 28  # of MNIST's images

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

CIFAR100_CLASSES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905
)

FASHION_MNIST_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


# ---- CIFAR ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CifarSet:
    """CIFAR-10 or CIFAR-100.

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


CIFAR10 = CifarSet(
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
CIFAR100 = CifarSet(
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
CIFAR_SETS = {variant.name: variant for variant in (CIFAR10, CIFAR100)}


def load_cifar(
    variant: CifarSet, data_dir: str | Path, *, val_size: int | None = None, only: str | None = None
) -> Dataset:
    """Read CIFAR-10, or CIFAR-100 with its 100 fine labels, and hold `val_size` training images out, class by class.

    The binary layout is taken where both are there.

    Args:
        variant: `CIFAR10` or `CIFAR100`.
        data_dir: the folder that holds `cifar-10-batches-bin` or `cifar-10-batches-py` (`cifar-100-binary` or
            `cifar-100-python`), or one of these itself.
        val_size, only: as in `load_dataset`; the files of splits that are not wanted are not read.

    Raises:
        FileNotFoundError: neither layout is there, or a file of it is missing.
        ValueError: a file is cut short, holds labels out of range, or is a pickle of anything but the official
            content.
    """
    root = Path(data_dir)
    layout = find_cifar_layout(variant, root)
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


_Reader = Callable[[CifarSet, Path, str], tuple[np.ndarray, np.ndarray]]


def find_cifar_layout(variant: CifarSet, root: Path) -> tuple[_Reader, Path] | None:
    """The reader and the folder of the layout to take, if one is there."""
    layouts: tuple[tuple[str, _Reader], ...] = ((variant.bin_dir, _read_bin), (variant.py_dir, _read_py))
    for name, read in layouts:
        for folder in (root / name, root):
            if folder.name == name and folder.is_dir():
                return read, folder
    return None


def _existing(variant: CifarSet, path: Path) -> Path:
    if not path.is_file():
        needed = ", ".join((*variant.train, variant.test))
        raise FileNotFoundError(f"data_dir: {path} is missing; {variant.title} needs {needed}")
    return path


def _read_bin(variant: CifarSet, folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Records of one or two label bytes and 3,072 pixel bytes."""
    path = _existing(variant, folder / f"{name}.bin")
    size, record = path.stat().st_size, variant.label_bytes + _PIXELS
    if size == 0 or size % record:
        raise ValueError(f"{path}: {size} bytes is not a positive multiple of {record}; is it cut short?")
    records = np.fromfile(path, dtype=np.uint8).reshape(-1, record)
    labels = records[:, variant.label_bytes - 1]
    highest = len(variant.class_names) - 1
    if int(labels.max()) > highest:
        raise ValueError(
            f"{path}: labels must be 0..{highest}, found {int(labels.max())}; this is not a {variant.title} file"
        )
    return _as_images(records[:, variant.label_bytes :]), labels


def _read_py(variant: CifarSet, folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dict with b"data" (uint8 `[N, 3072]`) and the labels (a list of N)."""
    path = _existing(variant, folder / name)
    batch = _read_pickle(path)
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


class _Kept:
    """What a pickle says of an array or of its element type; nothing is made of it before it has been checked."""

    state: Any = None

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments

    def __setstate__(self, state: object) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        """The uint8 array that an honest file describes by (version, shape, dtype, Fortran order, bytes)."""
        _, shape, dtype, fortran, content = self.state
        if dtype.arguments[0] not in ("u1", b"u1"):
            raise ValueError(f"an array of {dtype.arguments[0]!r:.20}, expected uint8")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, codec: str) -> bytes:
    """Bytes as Python 3 stores them in protocol 2."""
    if codec != "latin1":
        raise pickle.UnpicklingError(f"refused to encode as {codec!r:.20}")
    return text.encode("latin1")


class _Unpickler(pickle.Unpickler):
    """Runs nothing: of all names in a pickle only those of arrays are known, and they stand for `_Kept`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return _encode
        known = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        if module in known and name in ("_reconstruct", "ndarray", "dtype"):
            return _Kept
        raise pickle.UnpicklingError(f"refused to load {module[:80]}.{name[:80]}")


def _read_pickle(path: Path) -> object:
    try:
        with open(path, "rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
        if isinstance(content, dict):
            return {key: value.array() if isinstance(value, _Kept) else value for key, value in content.items()}
    except Exception as error:  # a damaged pickle fails with almost any exception type
        raise ValueError(f"{path}: not a CIFAR batch ({type(error).__name__}: {error})") from error
    return content


# ---- MNIST ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class IdxSet:
    """MNIST or Fashion-MNIST, whose files have the same names.

    Attributes:
        name: as in `load_dataset`.
        folders: where in the data folder the files may lie, best first; the first as torchvision has it.
        class_names: by label.
    """

    name: str
    folders: tuple[str, ...]
    class_names: tuple[str, ...]


MNIST = IdxSet("mnist", ("MNIST/raw", "mnist", "."), tuple("0123456789"))
FASHION_MNIST = IdxSet("fashion-mnist", ("FashionMNIST/raw", "fashion-mnist", "."), FASHION_MNIST_CLASSES)
IDX_SETS = {variant.name: variant for variant in (MNIST, FASHION_MNIST)}
IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def load_mnist(
    variant: IdxSet, data_dir: str | Path, *, val_size: int | None = None, only: str | None = None
) -> Dataset:
    """Read one of the two and hold `val_size` training images out for validation, class by class.

    Images are uint8 `[N, 1, 28, 28]`, as in the files: no padding to 32x32.

    Args:
        variant: `MNIST` or `FASHION_MNIST`. The files do not say which of the two they are.
        data_dir: the folder with the four IDX files, plain or `.gz`, or with one of `variant.folders` in it.
        val_size, only: as in `load_dataset`; the files of splits that are not wanted are not read.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is cut short, too long, damaged, or not what its name says.
    """
    root = Path(data_dir)
    folder = next((root / name for name in variant.folders if holds_idx_files(root / name)), None)
    if folder is None:
        state = "folder exists" if root.is_dir() else "no such folder"
        raise FileNotFoundError(
            f"data_dir: no {IDX_FILES[0]} or {IDX_FILES[0]}.gz in {root} ({state}), nor in "
            f"{' or '.join(variant.folders[:-1])} there. "
            f"Put the four IDX files of {variant.name} there, or let --download fetch them."
        )
    return of_files(
        variant.name,
        lambda: _read_idx_split(folder, *IDX_FILES[:2]),
        lambda: _read_idx_split(folder, *IDX_FILES[2:]),
        val_size=val_size,
        only=only,
        class_names=variant.class_names,
    )


def holds_idx_files(folder: Path) -> bool:
    """Whether any of the four files is in a folder."""
    return any((folder / f"{file}{suffix}").is_file() for file in IDX_FILES for suffix in ("", ".gz"))


def _read_idx_split(folder: Path, images_name: str, labels_name: str) -> Split:
    images_path, images = _read_idx(folder, images_name, (_SIDE, _SIDE))
    labels_path, labels = _read_idx(folder, labels_name, ())
    if len(images) != len(labels):
        raise ValueError(f"{images_path}: {len(images)} images, but {labels_path} has {len(labels)} labels")
    if int(labels.max()) > 9:
        raise ValueError(f"{labels_path}: labels must be 0..9, found {int(labels.max())}")
    return _split(images[:, None], labels)


def _read_idx(folder: Path, name: str, item: tuple[int, ...]) -> tuple[Path, np.ndarray]:
    """The path taken and the uint8 array `[N, *item]` of an IDX file (magic number, sizes, content, big-endian)."""
    path = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"data_dir: {folder / name} (or .gz) is missing; four files are needed: {IDX_FILES}")
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        magic = bytes((0, 0, 8, 1 + len(item)))  # 8: unsigned bytes
        if content[:4] != magic:
            raise ValueError(f"expected it to begin with {magic.hex()}, got {content[:4].hex() or 'nothing'}")
        shape = tuple(int(size) for size in np.frombuffer(content, ">u4", 1 + len(item), offset=4))
        if shape[0] == 0 or shape[1:] != item:
            raise ValueError(f"expected {' x '.join(('N', *map(str, item)))} with N above 0, got {list(shape)}")
        pixels = content[4 + 4 * len(shape) :]
        if len(pixels) != math.prod(shape):
            raise ValueError(f"its header promises {math.prod(shape)} bytes, it holds {len(pixels)}")
    except Exception as error:  # gzip fails with several exception types
        raise ValueError(f"{path}: not a whole IDX file ({error})") from error
    return path, np.frombuffer(bytearray(pixels), np.uint8).reshape(shape)
