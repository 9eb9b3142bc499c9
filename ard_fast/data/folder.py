"""Image folders: ROOT/train/<class>/... and ROOT/test/<class>/..., decoded once into a cache on disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from ard_fast.data.image_cache import cached_images, kept_images
from ard_fast.data.images import EXTENSIONS
from ard_fast.data.splits import Dataset, Split, held_out_positions

CACHE_DIR = ".ard_fast_cache"
_VERSION = 2  # of what the cached pixels depend on besides the files and the settings; 1: EXIF orientation not applied


def load_folder(
    data_dir: str | Path,
    *,
    val_size: int | None = None,
    image_size: int | None = None,
    image_cache: str | Path | None = None,
    only: str | None = None,
) -> Dataset:
    """Read an image folder; images are uint8 `[N, 3, H, W]`, RGB, mapped read-only from the cache.

    A class is a folder in ROOT/train, and its label the folder's place in alphabetical order; images may lie deeper in
    it. With both ROOT/test and ROOT/val, val is for validation; with one of them, that one is the test split, and
    validation images are held out of train. Names that begin with a dot and files that are no images are passed over.
    The cache is made again when a file's name, size or time of change differs, or a setting.

    Args:
        data_dir: ROOT.
        val_size: how many training images to hold out, class by class; at least the number of classes;
            None as in `load_dataset`.
        image_size: the shorter side is scaled to this and the middle is taken; None needs images of one size.
        image_cache: where decoded images are kept; None is `.ard_fast_cache` in ROOT.
        only: as in `load_dataset`: for "test" ROOT/train may be missing, and the classes are then the folders of the
            test images; for "train" ROOT/test and ROOT/val may. Images of a cache of all splits are taken from there.

    Raises:
        FileNotFoundError: ROOT/train is missing, or both ROOT/test and ROOT/val are.
        ValueError: classes without images, classes that train does not have, images that cannot be decoded (up to ten
            are named), a bad `val_size`.
        OSError: the cache cannot be written.
    """
    root = Path(data_dir)
    rest = [name for name in ("test", "val") if (root / name).is_dir()]
    if not (root / "train").is_dir() and not (rest and only == "test"):
        missing = "test" if only == "test" else "train"
        raise FileNotFoundError(
            f"data_dir: no folder {root / missing}; expected {root}/{missing}/<class>/*.png and others"
        )
    if not rest and only in (None, "test"):
        raise FileNotFoundError(f"data_dir: no folder {root / 'test'} or {root / 'val'}")
    source = "train" if (root / "train").is_dir() else rest[0]
    classes = _class_names(root / source)
    if len(classes) < 2:
        raise ValueError(f"data_dir: expected at least 2 class folders in {root / source}, found {len(classes)}")

    where = root / CACHE_DIR if image_cache is None else Path(image_cache)
    parts, images = _parts(root, classes, rest, val_size, only), None
    if only is not None and source == "train":
        try:
            listing = _files(_parts(root, classes, rest, val_size, None))
        except (ValueError, FileNotFoundError):  # in a part that is not wanted
            listing = None
        if listing:
            wanted = {only: listing[only]}
            images = kept_images(where / _key(root, listing, image_size), wanted, size=image_size)
    if images is None:
        listing = _files(parts)
        images = cached_images(where, _key(root, listing, image_size), listing, size=image_size)
    splits = {
        part: Split(images[part], torch.from_numpy(own), torch.from_numpy(ids)) for part, (_, own, ids) in parts.items()
    }
    return Dataset.of(
        "folder",
        splits,
        only,
        num_classes=len(classes),
        levels=255,
        class_names=classes,
        classes_known=source == "train",
    )


_Part = tuple[list[Path], np.ndarray, np.ndarray]  # files, labels, ids


def _parts(
    root: Path, classes: tuple[str, ...], rest: list[str], val_size: int | None, only: str | None
) -> dict[str, _Part]:
    """The splits, or the one that is wanted; of `rest` the first is for testing, the second for validation."""
    parts: dict[str, _Part] = {}
    if only in (None, "train") or (only == "val" and len(rest) < 2):
        files, labels = _list_images(root / "train", classes, every_class=True)
        everything = np.arange(len(files))
        train, val = (everything, None) if len(rest) == 2 else held_out_positions(labels, val_size, len(classes))
        parts["train"] = [files[k] for k in train], labels[train], train
        if val is not None:
            parts["val"] = [files[k] for k in val], labels[val], val
    for name, part in zip(rest, ("test", "val"), strict=False):
        if only in (None, part):
            listed, own = _list_images(root / name, classes, every_class=False)
            parts[part] = listed, own, np.arange(len(listed))
    return parts if only is None else {only: parts[only]}


def _files(parts: dict[str, _Part]) -> dict[str, list[Path]]:
    return {part: files for part, (files, _, _) in parts.items()}


def _class_names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."))


def _list_images(folder: Path, classes: tuple[str, ...], *, every_class: bool) -> tuple[list[Path], np.ndarray]:
    """The image files of a part, sorted, and their labels."""
    strangers = [name for name in _class_names(folder) if name not in classes]
    if strangers:
        raise ValueError(f"data_dir: {folder / strangers[0]} is a class that train does not have")
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(_walk(folder / name))
        if every_class and not found:
            raise ValueError(f"data_dir: class folder {folder / name} holds no image ({', '.join(EXTENSIONS)})")
        files += found
        labels += [label] * len(found)
    if not files:
        raise ValueError(f"data_dir: no image ({', '.join(EXTENSIONS)}) in class folders of {folder}")
    return files, np.array(labels, dtype=np.int64)


def _walk(folder: Path) -> list[Path]:
    found = []
    for place, folders, names in os.walk(folder):  # links to folders are not followed: they may go in circles
        folders[:] = [name for name in folders if name[0] != "."]
        found += [Path(place, name) for name in names if name[0] != "." and name.lower().endswith(EXTENSIONS)]
    return found


def _key(root: Path, parts: dict[str, list[Path]], image_size: int | None) -> str:
    """A hash of all that decides the cached pixels: files, their size and time of change, their order, settings."""
    digest = hashlib.sha256(f"{_VERSION} {image_size}\n".encode())
    for part, files in parts.items():
        for file in files:
            try:
                state = file.stat()
            except OSError as error:
                raise ValueError(f"data_dir: {file} cannot be read ({error.strerror})") from error
            name = os.fsencode(file.relative_to(root))
            digest.update(b"%s\0%s\0%d\0%d\n" % (part.encode(), name, state.st_size, state.st_mtime_ns))
    return digest.hexdigest()[:32]
