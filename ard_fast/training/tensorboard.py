"""A run's metrics for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def require_tensorboard() -> None:
    """Refuse --tensorboard where the package is missing.

    Raises:
        ValueError: says how to get it.
    """
    if find_spec("tensorboard") is None:
        raise ValueError("tensorboard: the package is not installed; pip install tensorboard, or leave the flag out")


class Board:
    """Writes one run's rows as scalars over the epochs.

    Args:
        folder: of the event files.
        rows: of the epochs that are done. They are written again, and whatever the folder says of them or of later
            epochs counts no more: a killed run may have written too much or too little.
    """

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        self._writer = SummaryWriter(str(folder), purge_step=1)
        for row in rows:
            self.add(row)

    def add(self, row: Mapping[str, Any]) -> None:
        """An epoch's figures, all numbers of its row."""
        for name, value in row.items():
            if name != "epoch" and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        self._writer.close()
