"""Data sets by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ard_fast._names import GIVEN, find_object, unknown
from ard_fast._typing import known
from ard_fast.data.download import DOWNLOADABLE, provide
from ard_fast.data.folder import MAX_SIZE, load_folder
from ard_fast.data.npz import load_npz
from ard_fast.data.official import CIFAR_SETS, IDX_FILES, IDX_SETS, load_cifar, load_mnist
from ard_fast.data.splits import SPLITS, Dataset, Split, hold_out, load_digits

# What --data-dir must name, for the data sets that need it.
_DATA_DIR = {
    **{v.name: f"the folder that holds {v.bin_dir} or {v.py_dir}" for v in CIFAR_SETS.values()},
    **{v.name: f"the folder that holds {v.folders[0]}/{IDX_FILES[0]}[.gz] and the like" for v in IDX_SETS.values()},
    "npz": "the path of an .npz file with x_train, y_train, x_test, y_test",
    "folder": "the folder that holds train/<class>/ and test/<class>/ with images",
}
DATASETS = ("digits", *_DATA_DIR)
_LOADERS: dict[str, Callable[..., Dataset]] = {
    "npz": load_npz,
    **{name: partial(load_cifar, variant) for name, variant in CIFAR_SETS.items()},
    **{name: partial(load_mnist, variant) for name, variant in IDX_SETS.items()},
}


def load_dataset(
    name: str,
    *,
    data_dir: str | Path | None = None,
    val_size: int | None = None,
    subset: int | None = None,
    test_subset: int | None = None,
    download: bool = False,
    image_size: int | None = None,
    image_cache: str | Path | None = None,
    only: str | None = None,
) -> Dataset:
    """A data set on the CPU, its splits fixed.

    Args:
        name: one of `DATASETS`.
        data_dir: where the files are; not used for the digits, which come with scikit-learn.
        val_size: validation images held out of the training files; the digits' split is fixed. None is 1,000, but at
            most a tenth of the images and at least one of each class.
        subset: keep only so many training images, of every class its share: `Split.sample`.
        test_subset: keep only so many test images, likewise.
        download: fetch files that are missing in `data_dir` (CIFAR and MNIST), checked against published checksums.
        image_size: of an image folder: the shorter side is scaled to this and the middle is taken; None needs images
            of one size.
        image_cache: where an image folder's decoded images are kept; None is `.ard_fast_cache` in `data_dir`.
        only: "train", "val" or "test": the other splits are empty, and files that this one does not need need not be
            there. Without training images the classes are counted by what is there (`Dataset.classes_known`).

    Raises:
        ValueError: an unknown name, a missing `data_dir`, or a subset that the split cannot give.
        FileNotFoundError: the files are not there.
        DownloadError: nor could they be downloaded.
    """
    check_arguments(name, data_dir=data_dir, download=download, image_size=image_size, image_cache=image_cache)
    if only not in (None, *SPLITS):
        raise ValueError(f"only: {unknown('split', only, SPLITS)}")
    if name == "digits":
        dataset = load_digits(only)
    elif name == "folder":
        dataset = load_folder(
            known(data_dir), val_size=val_size, image_size=image_size, image_cache=image_cache, only=only
        )
    elif name.startswith(f"{GIVEN}:"):
        dataset = dataclasses.replace(find_object(name, "dataset"), name=name)
        if not len(dataset.val):
            training, held_out = hold_out(dataset.train, val_size, num_classes=dataset.num_classes)
            dataset = dataclasses.replace(dataset, train=training, val=held_out)
    else:
        if download:
            provide(name, Path(known(data_dir)))
        dataset = _LOADERS[name](known(data_dir), val_size=val_size, only=only)
    return dataclasses.replace(
        dataset,
        train=_sample(dataset.train, subset, "subset", f"training images of {name}"),
        test=_sample(dataset.test, test_subset, "test_subset", f"test images of {name}"),
    )


def check_arguments(
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    image_size: int | None = None,
    image_cache: str | Path | None = None,
) -> None:
    """Refuse what `load_dataset` would refuse before it looks at any file.

    Raises:
        ValueError: an unknown name, a missing `data_dir`, or an argument that the data set does not take.
    """
    if name not in DATASETS and not name.startswith(f"{GIVEN}:"):
        raise ValueError(unknown("dataset", name, DATASETS))
    if name in _DATA_DIR and data_dir is None:
        raise ValueError(f"data_dir: {name} needs --data-dir, {_DATA_DIR[name]}")
    if download and name not in DOWNLOADABLE:
        raise ValueError(f"download: only {', '.join(DOWNLOADABLE)} can be downloaded, not {name}")
    for argument, value in (("image_size", image_size), ("image_cache", image_cache)):
        if value is not None and name != "folder":
            raise ValueError(f"{argument}: only for dataset folder, not {name}")
    if image_size is not None and (isinstance(image_size, bool) or not 1 <= image_size <= MAX_SIZE):
        raise ValueError(f"image_size: expected 1 to {MAX_SIZE} pixels or none, got {image_size}")


def _sample(split: Split, count: int | None, argument: str, what: str) -> Split:
    if count is None:
        return split
    if not 1 <= count <= len(split):
        raise ValueError(f"{argument}: expected 1 to {len(split)} {what}, got {count}")
    return split.sample(count)
