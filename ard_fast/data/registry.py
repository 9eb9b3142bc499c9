"""Data sets by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ard_fast.data.cifar10 import load_cifar10
from ard_fast.data.digits import load_digits
from ard_fast.data.splits import Dataset, Split
from ard_fast.names import unknown

DATASETS = ("digits", "cifar10")


def load_dataset(
    name: str,
    *,
    data_dir: str | Path | None = None,
    val_size: int = 1000,
    subset: int | None = None,
    test_subset: int | None = None,
) -> Dataset:
    """A data set on the CPU, its splits fixed.

    Args:
        name: one of `DATASETS`.
        data_dir: where the CIFAR-10 files are; not used for the digits, which come with scikit-learn.
        val_size: validation images held out of CIFAR-10's training files; the digits' split is fixed.
        subset: keep only the first `subset` training images.
        test_subset: keep only the first `test_subset` test images.

    Raises:
        ValueError: an unknown name, a missing `data_dir`, or a subset that the split cannot give.
        FileNotFoundError: the files are not there.
    """
    if name == "digits":
        dataset = load_digits()
    elif name == "cifar10":
        if data_dir is None:
            raise ValueError(
                "data_dir: cifar10 needs --data-dir, the folder that holds cifar-10-batches-bin or cifar-10-batches-py"
            )
        dataset = load_cifar10(data_dir, val_size=val_size)
    else:
        raise ValueError(unknown("dataset", name, DATASETS))
    return dataclasses.replace(
        dataset,
        train=_first(dataset.train, subset, "subset", f"training images of {name}"),
        test=_first(dataset.test, test_subset, "test_subset", f"test images of {name}"),
    )


def _first(split: Split, count: int | None, argument: str, what: str) -> Split:
    if count is None:
        return split
    if not 1 <= count <= len(split):
        raise ValueError(f"{argument}: expected 1 to {len(split)} {what}, got {count}")
    return Split(split.images[:count], split.labels[:count], split.ids[:count])
