"""Whole files or none: what a run writes is never seen half-written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make a file beside `path`, then put it in its place in one step.

    A process killed in between leaves the former file as it was.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file in one step."""
    write_atomic(path, lambda part: part.write_text(text, encoding="utf-8"))


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other living process is in here with the same lock file, which is made and stays."""
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
