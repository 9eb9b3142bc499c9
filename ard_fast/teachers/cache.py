"""Logits of a teacher at every crop and flip of the training images, computed once."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ard_fast.teachers.table import DamagedTable, FileTable, ResidentTable

_CHECKED_ROWS = 32
# Of the largest logit: by how much logits from a file may differ from those computed now, on this machine.
_AGREES = {"fp32": 1e-3, "bf16": 5e-2}


class CacheWarning(UserWarning):
    """The cache is not used, or not all of it; results are the same without it."""


class LogitsCache:
    """A table of logits by (image id, view), filled as images come by.

    What a miss returns is what is kept: logits rounded to the table's dtype (float32: not rounded). So a hit repeats
    what some earlier step returned bit for bit, whichever run that step belonged to. It is what the teacher would
    compute now, too, where an image's logits do not depend on its batch: see `LeanNetwork` for where that holds;
    elsewhere (cuDNN choosing another algorithm for another batch size) it is the same up to rounding.

    Logits that come from a file are held against the teacher's once, on the first ones that are used; a file that
    disagrees is begun anew, as is a damaged one. Where the file cannot be written, the run goes on without; every such
    thing is said once, as a `CacheWarning`.

    Args:
        rows: the largest id + 1.
        images: how many ids there are.
        padding: of the crops.
        flip: whether images are flipped.
        num_classes: C.
        dtype: torch.float32 or torch.float16.
        device: where logits are wanted.
        path: of the table shared with other runs; None keeps it in memory, for this run.
        header: what the table belongs to, at most 4092 bytes; held against the file's.
        resident: keep what was read or computed on the device too, so that a table that is known entirely is looked up
            without waiting for the device. Without a path there is nothing else.
        precision: the teacher's, "fp32" or "bf16".
    """

    def __init__(
        self,
        *,
        rows: int,
        images: int,
        padding: int,
        flip: bool,
        num_classes: int,
        dtype: torch.dtype,
        device: torch.device,
        path: Path | None = None,
        header: bytes = b"",
        resident: bool = False,
        precision: str = "fp32",
    ) -> None:
        self.dtype, self.device, self.path, self._header, self._flip = dtype, device, path, header, flip
        self._views = view_count(padding, flip)
        self._shape, self._entries = (rows * self._views, num_classes), images * self._views
        self._tolerance = _AGREES[precision]
        self.resident = ResidentTable(*self._shape, dtype, device) if resident or path is None else None
        self.file = None if path is None else self._open(path)
        self._checked = 0
        self.lookups = self.hits = 0
        self._reported = 0, 0

    def logits(self, ids: Tensor, views: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits, float32 `[B, C]`.

        Args:
            ids: int64 `[B]`, 0 to rows - 1, on the device.
            views: int64 `[B]`, as in `Batch.views`.
            compute: the teacher's logits, float32 `[n, C]`, of the images at int64 positions `[n]` in the batch.
        """
        slots = ids * self._views + (views if self._flip else views // 2)  # without flips every other number is unused
        self.lookups += len(slots)
        if self.resident is not None and self.complete:
            self.hits += len(slots)
            return self.resident.values[slots].float()
        if self.resident is None:
            values, known = self._read(slots, torch.arange(len(slots)), compute)
        else:
            values, known = self.resident.get(slots)
            missing = (~known).nonzero().flatten()  # waits for the device
            if len(missing) and self.file is not None:
                read, found = self._read(slots[missing], missing, compute)
                missing = missing[found]
                values[missing], known[missing] = read[found], True
                self.resident.put(slots[missing], read[found])
        missing = (~known).nonzero().flatten()
        self.hits += len(slots) - len(missing)
        if len(missing):
            values[missing] = self._round(compute(missing))
            self._keep(slots[missing], values[missing])
        return values.float()

    @property
    def complete(self) -> bool:
        """Whether every row is on the device, so that no lookup waits for it."""
        return self.resident is not None and self.resident.filled == self._entries

    def report(self) -> dict[str, float]:
        """The share of lookups since the last report that needed no teacher."""
        lookups, hits = self.lookups - self._reported[0], self.hits - self._reported[1]
        self._reported = self.lookups, self.hits
        return {"cache_hits": hits / lookups if lookups else 0.0}

    def describe(self) -> str:
        """Where the table is and how much it has saved so far, in words."""
        where = f"in {self.path}" if self.file is not None else "in memory"
        share = 100.0 * self.hits / self.lookups if self.lookups else 0.0
        return f"logits of clean images kept {where} as {self.dtype}: {share:.1f} % of {self.lookups} came from there"

    def _round(self, logits: Tensor) -> Tensor:
        limit = torch.finfo(self.dtype).max
        return logits.clamp(-limit, limit).to(self.dtype)

    # ---- the file ---------------------------------------------------------------------------------------------

    def _open(self, path: Path) -> FileTable | None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):
                try:
                    return FileTable(path, self._header, *self._shape, self.dtype)
                except DamagedTable as error:
                    warn_cache(f"{error}: it is begun anew")
                    path.unlink(missing_ok=True)
            warn_cache(f"{path} is damaged again and again: the run goes on without it")
        except (OSError, ValueError) as error:
            warn_cache(f"{path} cannot be used ({error}): the run goes on without it")
        return None

    def _read(self, slots: Tensor, positions: Tensor, compute: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Rows of the file and which of them are known, on the device; none where there is no file."""
        if self.file is not None:
            try:
                values, known = (part.to(self.device) for part in self.file.get(slots.cpu()))
            except (DamagedTable, OSError) as error:
                self._drop(f"{error}: the run goes on without it")
            else:
                if self._checked >= _CHECKED_ROWS or self._check(values, known, positions, compute):
                    return values, known
        shape = (len(slots), self._shape[1])
        return torch.zeros(shape, dtype=self.dtype, device=self.device), torch.zeros(
            len(slots), dtype=torch.bool, device=self.device
        )

    def _check(self, values: Tensor, known: Tensor, positions: Tensor, compute: Callable[[Tensor], Tensor]) -> bool:
        """Whether the first rows that are used are the teacher's; if not, begin the file anew."""
        chosen = known.nonzero().flatten()[:_CHECKED_ROWS]
        if not len(chosen):
            return True
        expected, found = self._round(compute(positions.to(chosen.device)[chosen])).float(), values[chosen].float()
        largest = expected.abs().nan_to_num(nan=0.0, posinf=0.0).max()
        if torch.allclose(found, expected, rtol=0.0, atol=self._tolerance * float(largest) + 1e-6, equal_nan=True):
            self._checked += len(chosen)
            return True
        path = self.path
        self._drop(f"{path} does not hold this teacher's logits: it is begun anew")
        if path is not None:
            path.unlink(missing_ok=True)
            self.file = self._open(path)
        return False

    def _keep(self, slots: Tensor, values: Tensor) -> None:
        if self.resident is not None:
            self.resident.put(slots, values)
        if self.file is not None and self.file.writable:
            try:
                self.file.put(slots.cpu(), values.cpu())
            except OSError as error:
                self.file.writable = False
                warn_cache(f"{self.path} cannot be written ({error}): what is in it is still used, nothing is added")

    def _drop(self, why: str) -> None:
        warn_cache(why)
        if self.file is not None:
            self.file.close()
        self.file = None


def view_count(padding: int, flip: bool) -> int:
    """How many crops and flips an image has."""
    return (2 * padding + 1) ** 2 * (2 if flip else 1)


def user_folder() -> Path:
    """Where tables go by default: `ard-fast/teacher-logits` in the user's cache folder (XDG_CACHE_HOME or ~/.cache)."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "ard-fast" / "teacher-logits"


def warn_cache(message: str) -> None:
    """Say once that the cache is not used as it could be."""
    warnings.warn(f"teacher_cache: {message}", CacheWarning, stacklevel=3)
