"""Finished runs as they lie in their folders, with what evaluations have added."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ard_fast.training.config import TrainConfig
from ard_fast.training.run_folder import PERCENT, TEXT, RunFolder, check_record
from ard_fast.training.settings import COMPARE


@dataclass(frozen=True)
class FinishedRun:
    """One run that has its summary.

    Attributes:
        folder: where it is.
        config: what it was trained with.
        summary: its summary.json.
        attacks: robust accuracy in percent by the attack's name, from evaluations of the best checkpoint on the same
            test images with the run's own eps in the L-infinity norm.
    """

    folder: RunFolder
    config: TrainConfig
    summary: Mapping[str, Any]
    attacks: Mapping[str, float] = field(default_factory=dict)


def expand(paths: Sequence[str | Path]) -> list[RunFolder]:
    """The runs that folders stand for: a run itself, or the runs inside a comparison's or any other folder.

    Raises:
        FileNotFoundError: no such folder, or nothing that is a run in it.
        ValueError: a configuration that cannot be read.
    """
    found: dict[Path, RunFolder] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"run: no such folder: {path}")
        folder = RunFolder(path)
        if folder.config_file.is_file() and folder.config().method != COMPARE:
            inside = [folder]
        else:
            children = (RunFolder(child) for child in sorted(path.iterdir()) if child.is_dir())
            inside = [child for child in children if child.config_file.is_file()]
        if not inside:
            raise FileNotFoundError(f"run: {path} is not a run and holds none (no config.yaml)")
        found.update({one.path.resolve(): one for one in inside})
    return list(found.values())


def read_run(folder: RunFolder) -> FinishedRun | None:
    """A run, or None if it is not finished.

    Raises:
        ValueError: a file of it cannot be read.
    """
    summary = folder.summary()
    if summary is None:
        return None
    config = folder.config()
    attacks: dict[str, float] = {}
    for path in sorted(folder.path.glob("evaluation*/results.json")):
        attacks.update(_attacks(path, config))
    return FinishedRun(folder, config, summary, attacks)


def _attacks(path: Path, config: TrainConfig) -> dict[str, float]:
    """What an evaluation found, if it is of the images and the ball that the summary is about."""
    try:
        content = json.loads(path.read_bytes())
        settings, rows = content["settings"], content["attacks"]
        same = (
            settings["split"] == "test"
            and settings["norm"] == "linf"
            and math.isclose(settings["eps"], config.eps, rel_tol=1e-9)
            and settings["dataset"] == config.dataset
            and settings["n_examples"] == config.test_subset
            and (config.test_subset is None or "classes" in content)  # else of the first images, as once taken
            and Path(settings["source"]).name in (path.parent.parent.name, "best.safetensors")
        )
        found = [row for row in rows if same and row["robust_acc"] is not None]
        for row in found:
            check_record(row, {"name": TEXT, "robust_acc": PERCENT})
        return {row["name"]: float(row["robust_acc"]) for row in found}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"run: {path} is not the result of an evaluation: {error!r}") from error
