"""Whole files or none: what a run writes is never seen half-written."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


class NotWritten(OSError):
    """A file could not be written, for example because the disk is full; what was there before is still there."""

    @classmethod
    def because(cls, path: Path, error: Exception) -> NotWritten:
        """The error for a path, with the reason in one line."""
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).split("\n")[0]
        return cls(f"cannot write {path}: {reason}")


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then put it in its place in one step.

    A process killed in between leaves the former file as it was; so does a machine that loses its power, since both
    the file and its folder's entry have reached the disk before this returns.

    Raises:
        NotWritten: `write` failed as a full or broken disk makes it fail.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        _sync(part)
        os.replace(part, path)
        _sync(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own
        raise NotWritten.because(path, error) from error
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder beside `folder`, which takes its name, and its place, when the block ends without an error.

    What a killed process has left is removed. Call it with no other process at work on `folder`.
    """
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one step."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


def append_line(path: Path, line: str) -> None:
    """Add a line to a UTF-8 text file and see it to the disk.

    Raises:
        NotWritten: the disk is full or broken; the line may be there in part.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise NotWritten.because(path, error) from error


@contextmanager
def lock_folder(folder: Path) -> Iterator[bool]:
    """Make the folder if need be and lock it for this process; the lock of a killed process is released.

    Gives whether it has made the folder. On file systems without locks nothing is locked.

    Raises:
        ValueError: another process has locked it.
        OSError: the folder cannot be made or opened.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    number = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                where = f"{folder}; wait for it, or choose another folder"
                raise ValueError(f"out: another process is training in {where}") from error
        yield made
    finally:
        os.close(number)


def _sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a lock file, which is made and stays; waits while another process holds it."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
