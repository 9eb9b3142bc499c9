"""What every data set is once loaded: three disjoint splits of uint8 images; and the digits of scikit-learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "val", "test")
_VAL_SIZE = 1000


def pixels(images: Tensor, levels: int) -> Tensor:
    """uint8 images as float32 in [0, 1], divided by `levels`: the same bits on every device.

    Dividing by a Python number multiplies by its reciprocal on a CUDA device, which rounds half of the 256 values to
    a neighbour.
    """
    return images.to(torch.float32) / torch.full((), levels, dtype=torch.float32, device=images.device)


@dataclass(frozen=True)
class Split:
    """Images and labels.

    Attributes:
        images: uint8 `[N, C, H, W]`; a pixel in [0, 1] is the value divided by `Dataset.levels`.
        labels: int64 `[N]`.
        ids: int64 `[N]`, the position of each image in its source file or array; two splits cut from one source share
            no id. They also key the attack's random start, so that it does not depend on the batch.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device), self.ids.to(device))

    def take(self, positions: Tensor) -> Split:
        return Split(self.images[positions], self.labels[positions], self.ids[positions])

    def part(self, first: int, last: int) -> Split:
        """The images from `first` to before `last`, in the same memory."""
        return Split(self.images[first:last], self.labels[first:last], self.ids[first:last])

    def nothing(self) -> Split:
        """A split of the same image shape without images."""
        return self.take(torch.empty(0, dtype=torch.int64, device=self.labels.device))

    def sample(self, count: int) -> Split:
        """`count` images, drawn class by class in the split's own proportions, in the split's order.

        The same ones for the same labels on every platform, whatever a run's seed; a smaller sample is part of a larger
        one. Files often lie sorted by class, where the first images would be of one class.

        Raises:
            ValueError: `count` is not 1 to `len(self)`.
        """
        if not 1 <= count <= len(self):
            raise ValueError(f"count: expected 1 to {len(self)}, got {count}")
        if count == len(self):
            return self
        order = torch.from_numpy(stratified_order(self.labels.cpu().numpy(), seed=_SPLIT_SEED))
        return self.take(order[:count].sort().values.to(self.labels.device))


@dataclass(frozen=True)
class Dataset:
    """Three splits and how to read them. `test` is for final figures only: tune and select on `val`.

    Attributes:
        name: as in `load_dataset`.
        train, val, test: disjoint splits with images of one shape.
        num_classes: labels are 0 to `num_classes` - 1.
        levels: the uint8 value that stands for 1.0.
        class_names: by label; the numbers themselves unless given.
        classes_known: False if only the labels tell how many classes there are: `num_classes` is then
            the least that it can be.
        pool: where there are extra images, the training images and behind them the extra ones (`add_extra`).
    """

    name: str
    train: Split
    val: Split
    test: Split
    num_classes: int
    levels: int
    class_names: tuple[str, ...] = ()
    classes_known: bool = True
    pool: Split | None = None

    def __post_init__(self) -> None:
        if not self.class_names:
            object.__setattr__(self, "class_names", tuple(map(str, range(self.num_classes))))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def describe(self, split: Split) -> str:
        """How many classes a split or a sample of it holds, in words."""
        present = len(torch.unique(split.labels))
        return f"{'all' if present == self.num_classes else f'{present} of'} {self.num_classes} classes"

    @classmethod
    def of(cls, name: str, parts: Mapping[str, Split], only: str | None = None, **about: Any) -> Dataset:
        """A data set of the splits at hand, or of the one named `only`; the others are empty."""
        empty = next(iter(parts.values())).nothing()
        splits = {part: parts.get(part, empty) if only in (None, part) else empty for part in SPLITS}
        return cls(name, **splits, **about)

    def evaluated_on(self, device: torch.device) -> Dataset:
        """The same data set with the validation and test images on `device`; a loader brings the training images."""
        return dataclasses.replace(self, val=self.val.to(device), test=self.test.to(device))


_SPLIT_SEED = 2026  # validation images and samples are the same ones for every training seed
_DIGITS_TEST, _DIGITS_VAL = 0.25, 0.15  # changing these or the seed changes every figure ever measured


def of_files(
    name: str,
    training: Callable[[], Split],
    test: Callable[[], Split],
    *,
    val_size: int | None,
    only: str | None,
    class_names: tuple[str, ...],
) -> Dataset:
    """A data set of uint8 files without validation images; those that `only` has no need of are not read."""
    parts: dict[str, Split] = {}
    if only != "test":
        parts["train"], parts["val"] = hold_out(training(), val_size, num_classes=len(class_names))
    if only in (None, "test"):
        parts["test"] = test()
    return Dataset.of(name, parts, only, num_classes=len(class_names), levels=255, class_names=class_names)


def hold_out(source: Split, val_size: int | None, *, num_classes: int) -> tuple[Split, Split]:
    """(train, val): about `val_size` images cut out of the training images, each class in the same proportion.

    They are always the same ones for the same labels; `val_size` is that of `load_dataset`.

    Raises:
        ValueError: `val_size` is not `num_classes` to `len(source) - num_classes`.
    """
    train, val = (torch.from_numpy(part) for part in held_out_positions(source.labels.numpy(), val_size, num_classes))
    return source.take(train), source.take(val)


def held_out_positions(labels: np.ndarray, val_size: int | None, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions (train, val) that `hold_out` takes, int64, sorted."""
    most = len(labels) - num_classes
    if val_size is None:
        val_size = max(num_classes, min(_VAL_SIZE, len(labels) // 10))
    if not num_classes <= val_size <= most:
        raise ValueError(
            f"val_size: expected {num_classes} to {most} for {len(labels)} training images, got {val_size}"
        )
    val, train = stratified_positions(labels, [val_size / len(labels)], seed=_SPLIT_SEED)
    return train, val


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of positions 0..N-1 whose every beginning holds the classes in the proportions of the whole.

    Each class's images, shuffled, are spread evenly over (0, 1); all are sorted by that place, equals by chance. It is
    the same for one seed on every platform.
    """
    rng = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        place[positions] = (np.arange(len(positions)) + 0.5) / len(positions)
    return np.lexsort((rng.random(len(labels)), place))


def stratified_positions(labels: np.ndarray, shares: list[float], seed: int) -> list[np.ndarray]:
    """Positions 0..N-1 cut into len(shares) + 1 disjoint parts, each class in the same proportions.

    The last one is what is left. Each is sorted, and the same for one seed on every platform.
    """
    rng = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in range(len(shares) + 1)]
    for label in np.unique(labels):
        positions = rng.permutation(np.flatnonzero(labels == label))
        edges = np.round(np.cumsum(shares) * len(positions)).astype(int)
        for part, chunk in zip(parts, np.split(positions, edges), strict=True):
            part.append(chunk)
    return [np.sort(np.concatenate(part)) for part in parts]


def load_digits(only: str | None = None) -> Dataset:
    """The 1,797 handwritten digits that ship inside scikit-learn: 8x8 pixels of 17 levels.

    They are cut once and for all, class by class: test 450, validation 269, train 1,078 images.

    Args:
        only: as in `load_dataset`.
    """
    package = find_spec("sklearn")  # the file is all that is needed; importing the package takes a second
    if package is None or package.origin is None:
        raise ModuleNotFoundError("dataset: digits comes with scikit-learn, which is missing: pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)  # [1797, 65]: 64 pixels of 0 to 16, the label
    labels = table[:, 64].astype(np.int64)
    test, val, train = (
        torch.from_numpy(part) for part in stratified_positions(labels, [_DIGITS_TEST, _DIGITS_VAL], seed=_SPLIT_SEED)
    )
    images = torch.from_numpy(table[:, :64].reshape(-1, 1, 8, 8))
    everything = Split(images, torch.from_numpy(labels), torch.arange(len(images)))
    parts = {"train": everything.take(train), "val": everything.take(val), "test": everything.take(test)}
    return Dataset.of("digits", parts, only, num_classes=10, levels=16)
