"""Rows of logits by number: in memory, and in a file that several processes share."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_HEADER_BYTES = 4096


class ResidentTable:
    """Rows on a device, `[slots, C]`; nothing waits for the device except `put`.

    Args:
        slots: how many rows.
        classes: C.
        dtype: of what is kept.
        device: where.
    """

    def __init__(self, slots: int, classes: int, dtype: torch.dtype, device: torch.device) -> None:
        self.values = torch.zeros(slots, classes, dtype=dtype, device=device)
        self.known = torch.zeros(slots, dtype=torch.bool, device=device)
        self.filled = 0

    def get(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Rows `[B, C]` and which of them are known, bool `[B]`; the others hold anything."""
        return self.values[slots], self.known[slots]

    def put(self, slots: Tensor, values: Tensor) -> None:
        """Keep rows."""
        fresh = slots[~self.known[slots]]
        self.values[slots] = values
        self.known[slots] = True
        self.filled += int(fresh.unique().numel())


class FileTable:
    """Rows in a file, each with a checksum of its number and its bytes, so that no row is ever half right.

    A row that was never written, was torn by a crash, or is damaged fails its checksum and counts as unknown: nothing
    else marks a row as filled, and nothing has to happen in any order. So several processes may read and write one
    file without a lock. The file is sparse; writing to it may fail (a full disk), which leaves what is there usable.
    Nothing is memory-mapped: in a map a full disk, a file that is cut short, and on tmpfs even the reading of a row
    that was never written are bus errors, which kill the process. A row costs a short system call instead.

    Args:
        path: the file; made where it is missing. Its folder must exist.
        header: at most 4092 bytes that identify the content; a file that begins otherwise is another's.
        slots: how many rows.
        classes: values a row.
        dtype: float16 or float32.

    Raises:
        OSError: the file cannot be made or opened.
        DamagedTable: there is a file of this name with another size or header.
    """

    def __init__(self, path: Path, header: bytes, slots: int, classes: int, dtype: torch.dtype) -> None:
        self.path, self.classes, self.dtype = path, classes, torch.empty(0, dtype=dtype).numpy().dtype
        self._payload = -(-classes * self.dtype.itemsize // 4)  # in words of 32 bits
        self._words = 1 + self._payload
        self.size = table_bytes(slots, classes, dtype)
        self.writable = True
        self._multipliers = _random_words(self._payload + 2) | np.uint64(1)
        flags = os.O_CLOEXEC | os.O_NOFOLLOW  # a link put there by somebody else is not followed
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o644)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._file = os.open(path, os.O_RDONLY | flags)
            self.writable = False
        try:
            self._begin(header.ljust(_HEADER_BYTES, b"\0"))
        except BaseException:
            os.close(self._file)
            raise

    def _begin(self, header: bytes) -> None:
        """Check what is there, or make it. Two processes that do so at once write the same bytes."""
        if self.writable and os.fstat(self._file).st_size == 0:
            os.ftruncate(self._file, self.size)
        size, found = os.fstat(self._file).st_size, os.pread(self._file, _HEADER_BYTES, 0)
        if self.writable and size == self.size and not any(found):  # made, and not yet named
            _write_all(self._file, header, 0)
            found = header
        if size != self.size:
            raise DamagedTable(f"{self.path} has {size} bytes, not {self.size}")
        if found != header:
            raise DamagedTable(f"{self.path} begins with another header")

    def get(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Rows `[B, C]` and which of them are known, bool `[B]`, for numbers `[B]` on the CPU.

        Raises:
            DamagedTable: the file has been cut short meanwhile.
            OSError: the disk cannot be read.
        """
        numbers, size = slots.numpy(), 4 * self._words
        rows = [os.pread(self._file, size, _HEADER_BYTES + number * size) for number in numbers.tolist()]
        content = bytearray().join(rows)
        if len(content) != len(numbers) * size:
            raise DamagedTable(f"{self.path} was cut to {os.fstat(self._file).st_size} bytes while in use")
        table = np.frombuffer(content, np.uint32).reshape(-1, self._words)
        words = np.ascontiguousarray(table[:, 1:])
        known = table[:, 0] == self._checksums(numbers, words)
        values = words.view(self.dtype)[:, : self.classes]
        return torch.from_numpy(np.ascontiguousarray(values)), torch.from_numpy(known)

    def put(self, slots: Tensor, values: Tensor) -> None:
        """Write rows `[B, C]` of the table's dtype, on the CPU.

        Raises:
            OSError: the disk is full, or any other failure to write.
        """
        numbers = slots.numpy()
        words = np.zeros((len(numbers), self._payload), np.uint32)
        words.view(self.dtype)[:, : self.classes] = values.numpy()
        rows = np.concatenate([self._checksums(numbers, words)[:, None], words], 1)
        for number, row in zip(numbers.tolist(), rows, strict=True):
            _write_all(self._file, row.tobytes(), _HEADER_BYTES + number * row.nbytes)

    def close(self) -> None:
        """Let go of the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _checksums(self, numbers: np.ndarray, words: np.ndarray) -> np.ndarray:
        """uint32 `[B]`, never 0: a multilinear hash of row number and words modulo 2^64, its upper half."""
        multipliers = self._multipliers
        total = multipliers[0] + (numbers.astype(np.uint64) + np.uint64(1)) * multipliers[1]
        total += (words.astype(np.uint64) * multipliers[2:]).sum(1, dtype=np.uint64)
        total ^= total >> np.uint64(29)
        total *= multipliers[0]
        return np.maximum((total >> np.uint64(32)).astype(np.uint32), 1)


class DamagedTable(ValueError):
    """A file that is not the table it should be."""


def table_bytes(slots: int, classes: int, dtype: torch.dtype) -> int:
    """The size of a `FileTable`'s file."""
    return _HEADER_BYTES + slots * 4 * (1 + -(-classes * dtype.itemsize // 4))


def _random_words(count: int) -> np.ndarray:
    """uint64 `[count]`, the same everywhere: SplitMix64 (Steele, Lea and Flood 2014) from 0."""
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _write_all(file: int, content: bytes, offset: int) -> None:
    written = os.pwrite(file, content, offset)
    if written != len(content):  # what a disk does that fills up in the middle
        raise OSError(f"wrote {written} of {len(content)} bytes")
