"""The folder of a run: which files it has, and how they are written and read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from ard_fast.checkpoint import BEST, LAST, STATE, DamagedRun
from ard_fast.config import TrainConfig, read_yaml, to_yaml, validate
from ard_fast.files import append_line, write_text

# A run's summary, in this order. Accuracies in percent, on the test split, of the best checkpoint.
SUMMARY_KEYS = (
    "method",
    "dataset",
    "student",
    "teacher",
    "seed",
    "epochs",
    "clean_acc",
    "pgd20_acc",
    "images_per_s",
    "elapsed_s",
)


class RunFolder:
    """Paths and formats of one run's files. Nothing is created before `start`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / "config.yaml"
        self.metrics_file = self.path / "metrics.jsonl"
        self.summary_file = self.path / "summary.json"
        self.report_file = self.path / "report.md"
        self.plot_file = self.path / "plot.png"
        self.pictures_file = self.path / "pictures.png"
        self.board = self.path / "tensorboard"
        self.best = self.path / BEST
        self.last = self.path / LAST
        self.state = self.path / STATE

    def start(self, config: TrainConfig) -> None:
        """Make the folder and write the configuration.

        Raises:
            FileExistsError: a run is there already.
        """
        if self.config_file.exists():
            raise FileExistsError(f"out: {self.path} already holds a run; choose another folder or use --resume")
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.config_file, to_yaml(config))

    def config(self, *, whole: bool = False) -> TrainConfig:
        """The configuration the run was started with.

        Args:
            whole: refuse a file that lacks keys, as one that was cut short does.
        """
        if not self.config_file.is_file():
            raise FileNotFoundError(f"resume: {self.path} is not the folder of a run (no config.yaml)")
        values = read_yaml(self.config_file)
        missing = [item.name for item in dataclasses.fields(TrainConfig) if item.name not in values]
        if whole and missing:
            names = shorten(", ".join(missing), 200)
            raise ValueError(f"config: {self.config_file} is cut short or of another version: it lacks {names}")
        config = TrainConfig(**values)
        validate(config)
        return config

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, the last one left out if it was cut short.

        Raises:
            DamagedRun: another line is damaged.
        """
        if not self.metrics_file.is_file():
            return []
        rows, lines = [], self.metrics_file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                rows.append(row)
            except (ValueError, RecursionError) as error:
                if number < len(lines):  # what follows the last line feed was cut short, or is empty
                    raise DamagedRun(f"metrics: {self.metrics_file}, line {number}, is damaged: {error}") from error
        return rows

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a line."""
        append_line(self.metrics_file, json.dumps(row))

    def rewrite_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace every line, in one step."""
        write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None.

        Raises:
            DamagedRun: damaged.
        """
        if not self.summary_file.is_file():
            return None
        try:
            summary = json.loads(self.summary_file.read_bytes())
            missing = [key for key in SUMMARY_KEYS if key not in summary]
            if missing:
                raise ValueError(f"it lacks {', '.join(missing)}")
        except (ValueError, TypeError, RecursionError) as error:
            raise DamagedRun(
                f"summary: {self.summary_file} is damaged: {error}. Without that file --resume makes it again"
            ) from error
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json. Its presence says that the run is finished, so it comes last."""
        write_text(self.summary_file, json.dumps(summary, indent=2) + "\n")
