"""Logits of a teacher at every crop and flip of the training images, computed once."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ard_fast._devices import arithmetic
from ard_fast._files import NotWritten, exclusive, write_atomic
from ard_fast._typing import known as given
from ard_fast.data.batches import Batch
from ard_fast.data.splits import Split
from ard_fast.functional.augmentation import crop_flip
from ard_fast.models.trial import layout_name
from ard_fast.teachers.fingerprints import fingerprint_images, fingerprint_network

if TYPE_CHECKING:
    from ard_fast.teachers.inference import InferenceNetwork

CACHE_AUTO, CACHE_OFF = "auto", "off"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
CACHE_DTYPES = tuple(DTYPES)
_FORMAT = 2
_IN_MEMORY = 64 << 20  # bytes up to which "auto" writes no file: computing so few logits again is quick
_ON_DEVICE = 1 << 30  # bytes up to which a table lies on a CUDA device
_MEMORY_SHARE = 0.5
_SAVE_SHARE = 0.125  # a table is written again when so many of its rows are new
_CHECKED_ROWS = 32
# Of the largest logit: by how much logits from a file may differ from those computed now, on this machine.
_TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


class CacheWarning(UserWarning):
    """The cache is not used, or not all of it; results are the same without it."""


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

    @property
    def rows(self) -> int:
        """Rows of a table of all views of all images, by id."""
        return (int(self.split.ids.max()) + 1) * self.per_image

    @property
    def per_image(self) -> int:
        """How many crops and flips an image has."""
        return (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)

    def row(self, ids: Tensor, views: Tensor) -> Tensor:
        """int64 `[B]`: the row of each image's view. Without flips every other number of a view is unused."""
        return ids * self.per_image + (views if self.flip else views // 2)

    def pixels(self, rows: Tensor) -> Tensor:
        """float32 `[B, C, H, W]` on the host: the views that belong to rows `[B]`."""
        ids, views = rows // self.per_image, rows % self.per_image
        positions = torch.zeros(int(self.split.ids.max()) + 1, dtype=torch.int64)
        positions[self.split.ids.cpu()] = torch.arange(len(self.split))
        images = self.split.images.cpu()[positions[ids]].contiguous()
        views = views if self.flip else 2 * views
        return crop_flip(images, torch.arange(len(rows)), padding=self.padding, levels=self.levels, views=views)[0]


class LogitsCache:
    """Teacher logits by (image, view), filled as images are used; later runs can read the saved file.

    What a miss returns is what is kept: logits rounded to the table's dtype (float32: not rounded), so a hit repeats
    what some earlier step returned bit for bit. It is what the teacher would compute now, too, where an image's logits
    do not depend on its batch: see `InferenceNetwork` for where that holds; elsewhere (cuDNN choosing another algorithm
    for another batch size) it is the same up to rounding.

    Which rows are known is kept on the host, where crops and flips are drawn, so no lookup waits for the device. Of
    several processes each fills a table of its own.

    Args:
        views: of the training images.
        network: computes logits.
        dtype: torch.float32 or torch.float16.
        device: where logits are wanted.
        path: a file of the table, read now and written by `save`; None for no file.
        key: what the table belongs to; a file with another key is not used.
    """

    def __init__(
        self,
        views: Views,
        network: InferenceNetwork,
        *,
        dtype: torch.dtype,
        device: torch.device,
        path: Path | None = None,
        key: str = "",
    ) -> None:
        self.views, self.network, self.dtype, self.device = views, network, dtype, device
        self.path, self._key = path, key
        place = device if table_bytes(views, network, dtype) <= _ON_DEVICE else torch.device("cpu")
        self.values = torch.empty(views.rows, network.num_classes, dtype=dtype, device=place)
        self.known = torch.zeros(views.rows, dtype=torch.bool)  # on the host
        self.lookups = self.hits = 0
        self._reported = 0, 0
        self._new_rows = 0
        if path is not None and path.exists():
            self._load(path)

    def logits(self, batch: Batch) -> Tensor:
        """Logits, float32 `[B, C]`, of a batch with `views`."""
        rows = self.views.row(given(batch.host_ids), given(batch.views))
        missing = (~self.known[rows]).nonzero().flatten()
        self.lookups += len(rows)
        self.hits += len(rows) - len(missing)
        if len(missing):
            self._keep(rows[missing], self.network(batch.x[missing.to(self.device)]))
        return self.values[rows.to(self.values.device)].to(self.device, torch.float32)

    def report(self) -> dict[str, float]:
        """The share of lookups since the last report that needed no teacher."""
        lookups, hits = self.lookups - self._reported[0], self.hits - self._reported[1]
        self._reported = self.lookups, self.hits
        return {"cache_hits": hits / lookups if lookups else 0.0}

    def describe(self) -> str:
        """Where the table is and how much it has saved so far, in words."""
        where = "in memory" if self.path is None else f"in {self.path}"
        share = 100.0 * self.hits / self.lookups if self.lookups else 0.0
        return f"logits of clean images kept {where} as {self.dtype}: {share:.1f} % of {self.lookups} came from there"

    def save(self, *, at_least: float = _SAVE_SHARE) -> None:
        """Write the file where more than the share `at_least` of the known rows is new.

        Of several runs that write the same file the last one's rows stay. A failure is reported once, as a
        `CacheWarning`; nothing is written from then on.
        """
        path, known = self.path, self.known
        if path is None or self._new_rows <= at_least * int(known.sum()):
            return
        rows = known.nonzero().flatten()
        values = self.values[rows.to(self.values.device)].cpu().numpy()

        def write(part: Path) -> None:
            with open(part, "wb") as file:  # numpy would add a suffix to a name
                np.savez(file, key=np.array(self._key), rows=rows.numpy(), values=values)

        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(path.with_suffix(".lock")):
                write_atomic(path, write)
            self._new_rows = 0
        except OSError as error:
            reason = str(error) if isinstance(error, NotWritten) else f"cannot write {path}: {error}"
            warn_cache(f"{reason}; later runs compute the logits again")
            self.path = None

    def _keep(self, rows: Tensor, logits: Tensor) -> None:
        limit = torch.finfo(self.dtype).max
        self.values[rows.to(self.values.device)] = logits.clamp(-limit, limit).to(self.values.device, self.dtype)
        self.known[rows] = True
        self._new_rows += len(rows)

    def _load(self, path: Path) -> None:
        """Take the rows of a file; one that is damaged or another teacher's is reported and not used."""
        try:
            # A zip archive, whose checksums are compared.
            with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
                key, rows, values = (file[name] for name in ("key", "rows", "values"))
            if str(key) != self._key:
                raise ValueError("it belongs to another teacher or other images")
            rows, values = torch.from_numpy(rows), torch.from_numpy(values)
            if rows.dtype != torch.int64 or rows.dim() != 1 or values.dtype != self.dtype:
                raise ValueError(f"it holds rows of {rows.dtype} and logits of {values.dtype}")
            if values.shape != (len(rows), self.values.shape[1]) or not ((rows >= 0) & (rows < len(self.known))).all():
                raise ValueError(f"it holds logits {list(values.shape)} for {len(rows)} rows")
            self._check(rows, values)
            self.values[rows.to(self.values.device)] = values.to(self.values.device)
            self.known[rows] = True
        except Exception as error:  # a damaged file fails with almost any exception type
            warn_cache(f"{path} is not used and will be replaced ({type(error).__name__}: {error})")

    def _check(self, rows: Tensor, values: Tensor) -> None:
        """Compare a few logits of a file with the teacher's: its code may have changed, which no key shows."""
        chosen = torch.arange(0, len(rows), max(len(rows) // _CHECKED_ROWS, 1))
        if not len(chosen):
            return
        expected = self.network(self.views.pixels(rows[chosen]).to(self.device)).cpu().to(self.dtype).float()
        largest = float(expected.abs().nan_to_num(nan=0.0, posinf=0.0).max())
        atol = _TOLERANCE[self.network.precision] * largest + 1e-6
        if not torch.allclose(values[chosen].float(), expected, rtol=0.0, atol=atol, equal_nan=True):
            raise ValueError("it does not hold this teacher's logits")


def open_cache(
    network: nn.Module,
    inference: InferenceNetwork,
    views: Views,
    *,
    cache: str | Path,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format,
) -> LogitsCache | None:
    """The table of a teacher's logits as `build_teacher` describes it; None where it would be too large."""
    size, auto = table_bytes(views, inference, dtype), str(cache) == CACHE_AUTO
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > _MEMORY_SHARE * memory:
        warn_cache(f"not used: {size / 2**30:.1f} GiB is more than half of the machine's memory")
        return None
    if auto and size <= _IN_MEMORY:
        return LogitsCache(views, inference, dtype=dtype, device=device)
    cuda = device.type == "cuda"
    key = json.dumps(
        {
            "ard-fast teacher logits": _FORMAT,
            "network": fingerprint_network(network),
            "images": fingerprint_images(views.split.images, views.split.ids),
            "views": [views.levels, views.padding, views.flip],
            "classes": inference.num_classes,
            "dtype": str(dtype),
            "precision": arithmetic(inference.precision, device),
            "folded": inference.folded[0],
            "layout": layout_name(layout),
            "device": device.type,
            "hardware": torch.cuda.get_device_name(device) if cuda else torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
        }
    )
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ard-fast" / "teacher-logits"
    folder = (base if auto else Path(cache)).expanduser()
    path = folder / f"{hashlib.blake2b(key.encode(), digest_size=16).hexdigest()}.npz"
    return LogitsCache(views, inference, dtype=dtype, device=device, path=path, key=key)


def table_bytes(views: Views, network: InferenceNetwork, dtype: torch.dtype) -> int:
    """The size of a whole table."""
    return views.rows * network.num_classes * dtype.itemsize


def warn_cache(message: str) -> None:
    """Say once that the cache is not used as it could be."""
    warnings.warn(f"teacher_cache: {message}", CacheWarning, stacklevel=3)
