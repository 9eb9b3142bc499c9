"""A teacher from a run's settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from ard_fast._names import unknown
from ard_fast._precision import arithmetic
from ard_fast.data import Split
from ard_fast.models.trial import Form, frozen, layout_name
from ard_fast.teachers.cache import LogitsCache, user_folder, view_count, warn_cache
from ard_fast.teachers.form import LeanNetwork
from ard_fast.teachers.identity import fingerprint_images, fingerprint_network, table_header, table_name
from ard_fast.teachers.table import table_bytes
from ard_fast.teachers.teacher import Teacher

CACHE_AUTO, CACHE_OFF = "auto", "off"
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
CACHE_DTYPES = tuple(_DTYPES)
_IN_MEMORY = 64 << 20  # bytes up to which "auto" keeps a table in memory: not worth a file that outlives the run
_RESIDENT = 1 << 30  # bytes up to which a table is kept on a CUDA device as well
_SAMPLE = 16


@dataclass(frozen=True)
class Views:
    """The training images as the loader makes them.

    Attributes:
        split: the training images; on any device.
        levels: the uint8 value that stands for 1.0.
        padding: of the random crops.
        flip: whether they are flipped.
    """

    split: Split
    levels: int
    padding: int
    flip: bool


def build_teacher(
    network: nn.Module,
    views: Views,
    *,
    precision: str = "fp32",
    cache: str | Path = CACHE_AUTO,
    cache_dtype: str = "fp32",
    layout: torch.memory_format = torch.channels_last,
    form: Form | None = None,
) -> Teacher:
    """The teacher of a run: in its lean form, with a cache of its logits at clean images.

    Args:
        network: on the device of the run.
        views: what its clean images are.
        precision: of the lean form, "fp32" or "bf16".
        cache: "off"; "auto" (in memory for the run where the whole table is small, else in the user's cache folder,
            unless it would take more than half of what is free there); or a folder.
        cache_dtype: "fp32" keeps logits as computed, so that the cache changes nothing; "fp16" rounds them, which
            halves the table (CIFAR-10: 194 MB instead of 356 MB).
        layout: of the lean form.
        form: that of the network itself, as in `Teacher`.

    Raises:
        ValueError: an unknown precision or dtype.
    """
    if cache_dtype not in _DTYPES:
        raise ValueError(unknown("teacher_cache_dtype", cache_dtype, _DTYPES))
    network = frozen(network)
    device = next(iter(network.state_dict().values()), views.split.images).device
    sample = views.split.images[:_SAMPLE].to(device, torch.float32) / views.levels
    lean = LeanNetwork(network, sample, precision, layout)
    if str(cache) == CACHE_OFF or not lean.by_image:
        return Teacher(network, lean=lean, form=form)
    opener = _opener(network, lean, views, cache=cache, dtype=_DTYPES[cache_dtype], device=device, layout=layout)
    return Teacher(network, lean=lean, cache=opener, form=form)


def _opener(
    network: nn.Module,
    lean: LeanNetwork,
    views: Views,
    *,
    cache: str | Path,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format,
) -> Callable[[], LogitsCache | None]:
    def open_cache() -> LogitsCache | None:
        rows, classes = int(views.split.ids.max()) + 1, lean.num_classes
        size = table_bytes(rows * view_count(views.padding, views.flip), classes, dtype)
        folder = user_folder() if str(cache) == CACHE_AUTO else Path(cache).expanduser()
        in_memory = str(cache) == CACHE_AUTO and size <= _IN_MEMORY
        if str(cache) == CACHE_AUTO and not in_memory and size > _free_bytes(folder) / 2:
            warn_cache(f"not used: {size / 2**30:.1f} GiB is more than half of what is free for {folder}")
            return None
        path, header = None, b""
        if not in_memory:
            header = table_header(
                network=fingerprint_network(network),
                images=fingerprint_images(views.split.images, views.split.ids),
                levels=views.levels,
                padding=views.padding,
                flip=views.flip,
                rows=rows,
                classes=classes,
                dtype=str(dtype),
                precision=arithmetic(lean.precision, device),
                folded=lean.folded[0],
                layout=layout_name(layout),
                device=str(device),
            )
            path = folder / table_name(header)
        return LogitsCache(
            rows=rows,
            images=len(views.split),
            padding=views.padding,
            flip=views.flip,
            num_classes=classes,
            dtype=dtype,
            device=device,
            path=path,
            header=header,
            resident=device.type == "cuda" and size <= _RESIDENT,
            precision=lean.precision,
        )

    return open_cache


def _free_bytes(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0
