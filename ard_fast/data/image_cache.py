"""Image files decoded once into memory-mapped arrays on disk."""

from __future__ import annotations

import os
import shutil
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ard_fast._files import exclusive
from ard_fast.data.images import decode

_MAX_WORKERS = 16
_MAX_NAMED = 10  # damaged images that an error names


def cached_images(
    folder: Path, key: str, parts: Mapping[str, Sequence[Path]], *, size: int | None
) -> dict[str, Tensor]:
    """The images of each part, decoded at the first call and mapped from disk at every one.

    The arrays get their name in `folder` only when all of them are whole and on disk, so that a crash or a full disk
    leaves nothing that a later call would take. Of several processes that ask at once, one decodes.

    Args:
        folder: where caches lie, made if need be.
        key: names this cache; the same key must mean the same files and settings.
        parts: files by the name of their part, none of them empty.
        size: as in `decode`; None needs images of one size.

    Returns:
        uint8 `[N, 3, H, W]` tensors by part, in the order of the files. They are read-only: writing to one crashes.

    Raises:
        ValueError: images that cannot be decoded or are not of one size; names up to ten of them.
        OSError: the cache cannot be written.
    """
    shapes, target = _shapes(parts, size), folder / key
    images = _open(target, shapes)
    if images is not None:
        return images
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with exclusive(folder / f".{key}.lock"):
            images = _open(target, shapes)  # another process may have been first
            if images is None:
                _build(target, parts, shapes, size)
                images = _open(target, shapes)
    except OSError as error:
        reason = f"{error.strerror}, so the decoded images cannot be kept; --image-cache names another folder for them"
        raise OSError(error.errno, reason, error.filename or str(folder)) from error
    if images is None:
        raise OSError(f"{target}: cannot be read back")
    return images


def kept_images(target: Path, parts: Mapping[str, Sequence[Path]], *, size: int | None) -> dict[str, Tensor] | None:
    """Some parts of a cache, as `cached_images` gives them, or None where it is not there or damaged.

    Args:
        target: the cache's own folder.
        parts: files by the name of their part, none of them empty.
        size: as in `decode`.
    """
    return _open(target, _shapes(parts, size)) if target.is_dir() else None


def _shapes(parts: Mapping[str, Sequence[Path]], size: int | None) -> dict[str, tuple[int, ...]]:
    shape = (3, size, size) if size is not None else decode(next(iter(parts.values()))[0], None).shape
    return {part: (len(files), *shape) for part, files in parts.items()}


def _open(target: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
    """The arrays mapped, or None where they are not all there as they should be."""
    images = {}
    for part, shape in shapes.items():
        try:
            array = np.load(target / f"{part}.npy", mmap_mode="r", allow_pickle=False)
        except Exception:  # not there, or damaged since: NumPy then fails with almost any exception type
            return None
        if not isinstance(array, np.memmap) or array.shape != shape or array.dtype != np.uint8:
            return None
        whole = array.offset + array.nbytes == (target / f"{part}.npy").stat().st_size
        if not (whole and array.flags.c_contiguous):
            return None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            images[part] = torch.from_numpy(array)
    return images


def _build(
    target: Path, parts: Mapping[str, Sequence[Path]], shapes: Mapping[str, tuple[int, ...]], size: int | None
) -> None:
    part_folder = target.with_name(f".{target.name}.part")
    shutil.rmtree(part_folder, ignore_errors=True)  # of a killed process
    part_folder.mkdir()
    try:
        total, failures = sum(map(len, parts.values())), []
        with tqdm(total=total, unit="img", desc="decoding images, once", disable=None, leave=False) as bar:
            for part, files in parts.items():
                _decode_into(part_folder / f"{part}.npy", files, shapes[part], size, bar, failures)
        if failures:
            many = len(failures) >= _MAX_NAMED
            named = "\n  ".join(sorted(failures)[:_MAX_NAMED])
            raise ValueError(
                f"data_dir: {_MAX_NAMED if many else len(failures)}{' or more' if many else ''} images "
                f"cannot be used:\n  {named}"
            )
        shutil.rmtree(target, ignore_errors=True)  # one that is damaged
        os.rename(part_folder, target)
    finally:
        shutil.rmtree(part_folder, ignore_errors=True)


def _decode_into(
    path: Path, files: Sequence[Path], shape: tuple[int, ...], size: int | None, bar: tqdm[Any], failures: list[str]
) -> None:
    """Write an .npy file of all images, several at a time; Pillow lets go of the interpreter while it decodes.

    What is wrong with images goes into `failures`; at `_MAX_NAMED` of them the rest is left.
    """
    stop = threading.Event()
    workers = min(_MAX_WORKERS, len(os.sched_getaffinity(0)), len(files))
    row = int(np.prod(shape[1:]))
    with open(path, "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(file, header)
        file.flush()
        start = file.tell()
        # Room for everything now: a disk that is too full should say so before hours of decoding. The rows are written
        # and not mapped, since a full disk under a mapping would kill the process.
        os.posix_fallocate(file.fileno(), 0, start + row * len(files))

        def work(first: int) -> None:
            try:
                for index in range(first, len(files), workers):
                    if stop.is_set() or len(failures) >= _MAX_NAMED:
                        return
                    try:
                        pixels = decode(files[index], size)
                        if pixels.shape != shape[1:]:
                            raise ValueError(
                                f"{files[index]}: {pixels.shape[2]} x {pixels.shape[1]} pixels, where the first image "
                                f"has {shape[3]} x {shape[2]}; --image-size brings all to one size"
                            )
                    except ValueError as error:
                        failures.append(str(error))
                    else:
                        _write_at(file.fileno(), pixels, start + row * index)
                    bar.update()
            except BaseException:
                stop.set()
                raise

        with ThreadPoolExecutor(workers) as pool:
            try:
                for done in [pool.submit(work, first) for first in range(workers)]:
                    done.result()
            finally:
                stop.set()
        os.fsync(file.fileno())


def _write_at(descriptor: int, pixels: np.ndarray, offset: int) -> None:
    rest = pixels.data.cast("B")
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
