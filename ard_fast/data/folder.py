"""Image folders: ROOT/train/<class>/... and ROOT/test/<class>/..., decoded once into a cache on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm import tqdm

from ard_fast._files import exclusive, whole_folder
from ard_fast.data.splits import Dataset, Split, held_out_positions

CACHE_DIR = ".ard_fast_cache"
MAX_SIZE = 4096  # of what images may be scaled to
_VERSION = 2  # of what the cached pixels depend on besides the files and the settings; 1: EXIF orientation not applied
EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
# Pillow goes by content, not by name, and knows formats that start other programs (EPS): these and no others.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "PPM", "TIFF")
_MAX_PIXELS = 1 << 26  # 200 MB once decoded; a few kB can claim billions
_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")
_MAX_WORKERS = 16
_BLOCK = 256  # images that are decoded before they are written
_MAX_NAMED = 10  # damaged images that an error names


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
            images = _open_cache(where / _key(root, listing, image_size), _shapes(wanted, image_size))
    if images is None:
        listing = _files(parts)
        images = _cached_images(where, _key(root, listing, image_size), listing, size=image_size)
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


# ---- decoding ------------------------------------------------------------------------------------------------------


def decode(path: Path, size: int | None) -> np.ndarray:
    """An image as uint8 `[3, H, W]` in RGB, turned as its EXIF orientation says; of an animation the first frame,
    transparency dropped.

    Args:
        path: the file.
        size: the shorter side is scaled to this (bilinear, antialiased) and the middle `size` x `size` pixels are
            taken; None leaves the image as it is.

    Raises:
        ValueError: not an image of 8 bits a channel, too large, or damaged.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            width, height = image.size
            if width * height > _MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels, more than {_MAX_PIXELS} in all")
            if image.mode not in _MODES:
                raise ValueError(f"pixels of Pillow's mode {image.mode}, expected 8 bits a channel")
            pixels = _upright(image).convert("RGB")
    except Exception as error:  # a damaged image fails with almost any exception type
        reason = "cannot identify it as an image" if "cannot identify" in str(error) else str(error)
        raise ValueError(f"{path}: {reason}") from error
    if size is not None:
        # Scaling just the square in the middle: what a whole one-pixel-high image would scale to may not fit anywhere.
        width, height = pixels.size
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        pixels = pixels.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(pixels).transpose(2, 0, 1))


def _upright(image: Image.Image) -> Image.Image:
    """Cameras store what the sensor saw, and beside it how to turn it; viewers and annotation tools do."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF, on almost any exception type; damaged pixels are seen when they are converted
        return image


# ---- the cache -----------------------------------------------------------------------------------------------------


def _cached_images(
    folder: Path, key: str, parts: Mapping[str, Sequence[Path]], *, size: int | None
) -> dict[str, Tensor]:
    """uint8 `[N, 3, H, W]` by part, decoded at the first call with this key and mapped read-only at every one.

    The arrays get their name in `folder` only when all of them are whole and on disk, so that a crash or a full disk
    leaves nothing that a later call would take. Of several processes that ask at once, one decodes.
    """
    shapes, target = _shapes(parts, size), folder / key
    images = _open_cache(target, shapes)
    if images is not None:
        return images
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / f".{key}.lock"):
            images = _open_cache(target, shapes)  # another process may have been first
            if images is None:
                _build_cache(target, parts, shapes, size)
                images = _open_cache(target, shapes)
    except OSError as error:
        reason = f"{error.strerror}, so the decoded images cannot be kept; --image-cache names another folder for them"
        raise OSError(error.errno, reason, error.filename or str(folder)) from error
    if images is None:
        raise OSError(f"{target}: cannot be read back")
    return images


def _shapes(parts: Mapping[str, Sequence[Path]], size: int | None) -> dict[str, tuple[int, ...]]:
    shape = (3, size, size) if size is not None else decode(next(iter(parts.values()))[0], None).shape
    return {part: (len(files), *shape) for part, files in parts.items()}


def _open_cache(target: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """The arrays mapped, or None where they are not all there as they should be."""
    images = {}
    for part, shape in shapes.items():
        try:
            array = np.load(target / f"{part}.npy", mmap_mode="r", allow_pickle=False)
        except Exception:  # not there, or damaged since: NumPy then fails with almost any exception type
            return None
        if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != np.uint8:
            return None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            images[part] = torch.from_numpy(array)
    return images


def _build_cache(
    target: Path, parts: Mapping[str, Sequence[Path]], shapes: Mapping[str, tuple[int, ...]], size: int | None
) -> None:
    failures: list[str] = []
    with whole_folder(target) as part_folder:
        total = sum(map(len, parts.values()))
        with tqdm(total=total, unit="img", desc="decoding images, once", disable=None, leave=False) as bar:
            for part, files in parts.items():
                _decode_into(part_folder / f"{part}.npy", files, shapes[part], size, bar, failures)
        if failures:
            more = " or more" if len(failures) > _MAX_NAMED else ""
            named = failures[:_MAX_NAMED]
            raise ValueError(f"data_dir: {len(named)}{more} images cannot be used:\n  " + "\n  ".join(named))


def _decode_into(
    path: Path, files: Sequence[Path], shape: tuple[int, ...], size: int | None, bar: tqdm[Any], failures: list[str]
) -> None:
    """Write an .npy file of all images, decoded several at a time: Pillow lets go of the interpreter meanwhile.

    What is wrong with images goes into `failures`; beyond `_MAX_NAMED` of them the rest is left.
    """
    workers = min(_MAX_WORKERS, len(os.sched_getaffinity(0)))
    with open(path, "wb") as file, ThreadPoolExecutor(workers) as pool:
        np.lib.format.write_array_header_2_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        file.flush()
        # Room for everything now: a disk that is too full should say so before hours of decoding. The rows are written
        # and not mapped, since a full disk under a mapping would kill the process.
        os.posix_fallocate(file.fileno(), 0, file.tell() + int(np.prod(shape)))
        for start in range(0, len(files), _BLOCK):
            block = files[start : start + _BLOCK]
            for found in pool.map(partial(_try_decode, size=size, shape=shape[1:]), block):
                if isinstance(found, str):
                    failures.append(found)
                else:
                    file.write(found.data)
                bar.update()
            if len(failures) > _MAX_NAMED:
                return
        file.flush()
        os.fsync(file.fileno())


def _try_decode(path: Path, *, size: int | None, shape: tuple[int, ...]) -> np.ndarray | str:
    """An image, or what is wrong with it."""
    try:
        pixels = decode(path, size)
    except ValueError as error:
        return str(error)
    if pixels.shape != shape:
        return (
            f"{path}: {pixels.shape[2]} x {pixels.shape[1]} pixels, where the first image has {shape[2]} x {shape[1]}; "
            "--image-size brings all to one size"
        )
    return pixels
