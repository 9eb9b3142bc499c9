"""Finished runs, read from their folders, and which of them differ only in their seed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ard_fast.methods.registry import method_label
from ard_fast.training.commandline import show
from ard_fast.training.config import TrainConfig
from ard_fast.training.run_folder import PERCENT, TEXT, RunFolder, check_record
from ard_fast.training.settings import COMPARE, ROLES, ComputeSettings, OutputSettings

# Settings that may differ within a group: seed, place of the data, device, extra outputs, comparison.
_ASIDE = {
    "seed",
    "data_dir",
    "compare_methods",
    "compare_seeds",
    *ComputeSettings.model_fields,
    *OutputSettings.model_fields,
}
_SEED_IN_PATH = re.compile(r"seed[-_]?\d+|\bs\d+\b", re.IGNORECASE)


@dataclass(frozen=True)
class FinishedRun:
    """A run that has a summary.

    Attributes:
        folder: its folder.
        config: what it was trained with.
        summary: its summary.json.
        attacks: robust accuracy in percent by the attack's name, from evaluations of the best checkpoint on the same
            test images, at once or in parts that are all there, with the run's own eps in the L-infinity norm, in fp32.
        curves: from the same evaluations, by the attack's name, robust accuracy in percent by radius.
    """

    folder: RunFolder
    config: TrainConfig
    summary: Mapping[str, Any]
    attacks: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Mapping[float, float]] = field(default_factory=dict)


def expand(paths: Sequence[str | Path]) -> list[RunFolder]:
    """The runs in these folders: each is a run, or holds runs as a comparison's folder does.

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
    curves: dict[str, dict[float, float]] = {}
    parts: dict[tuple[str, int], dict[int, tuple[float, int]]] = {}  # by attack and number of parts, each part's
    for path in sorted(folder.path.glob("evaluation*/results.json")):
        accuracies, radii, part = read_evaluation(path, config)
        if part is None:
            attacks.update(accuracies)
            curves.update(radii)
        else:
            place, count, images = part
            for name, accuracy in accuracies.items():
                parts.setdefault((name, count), {})[place] = (accuracy, images)
    for (name, count), found in parts.items():
        if len(found) == count:
            images = sum(size for _, size in found.values())
            attacks[name] = sum(accuracy * size for accuracy, size in found.values()) / images
    return FinishedRun(folder, config, summary, attacks, curves)


def read_evaluation(
    path: Path, config: TrainConfig
) -> tuple[dict[str, float], dict[str, dict[float, float]], tuple[int, int, int] | None]:
    """Accuracies and curve of an evaluation, if it used the images and the ball of the run's summary.

    Of one part of these images also the part, the number of parts and of its images.
    """
    try:
        content = json.loads(path.read_bytes())
        settings, rows = content["settings"], content["attacks"]
        same = (
            settings["split"] == "test"
            and settings["norm"] == "linf"
            and math.isclose(settings["eps"], config.eps, rel_tol=1e-9)
            and settings["dataset"] == config.dataset
            and settings["n_examples"] == config.test_subset
            and settings.get("precision", "fp32") == "fp32"  # attacks in bfloat16 may be weaker
            and (
                config.test_subset is None or "classes" in content
            )  # older versions took the first images instead of a sample
            and Path(settings["source"]).name in (path.parent.parent.name, "best.safetensors")
        )
        found = [row for row in rows if same and row["robust_acc"] is not None]
        for row in found:
            check_record(row, {"name": TEXT, "robust_acc": PERCENT})
        attacks, curve = {row["name"]: float(row["robust_acc"]) for row in found}, content.get("eps_curve")
        part = (*settings["part"], content["images"]) if settings.get("part") else None
        if not (same and curve):
            return attacks, {}, part
        for point in curve["points"]:
            check_record(point, {"eps": PERCENT, "robust_acc": PERCENT})
        radii = {point["eps"]: point["robust_acc"] for point in curve["points"]}
        return attacks, {curve["attack"]: radii}, part
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"run: {path} is not the result of an evaluation: {error!r}") from error


# ---- one configuration over several seeds --------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Runs of one configuration.

    Attributes:
        label: as printed, unique in a comparison.
        runs: in the order of their seeds.
    """

    label: str
    runs: Sequence[FinishedRun]

    def values(self, key: str) -> list[float]:
        """A figure of the summaries, one value for each run."""
        return [run.summary[key] for run in self.runs]

    def attack(self, name: str) -> list[float] | None:
        """Robust accuracy under an attack, or None unless all runs were evaluated under it."""
        found = [run.attacks[name] for run in self.runs if name in run.attacks]
        return found if len(found) == len(self.runs) else None

    def curve(self, attack: str) -> list[Mapping[float, float]]:
        """Robust accuracy by radius under an attack, of each run; empty unless all runs have some radius in common."""
        found = [run.curves[attack] for run in self.runs if attack in run.curves]
        return found if len(found) == len(self.runs) and set.intersection(*map(set, found)) else []

    @property
    def is_teacher(self) -> bool:
        """Whether a comparison trained these runs as teachers."""
        return _role(self.runs[0]) is not None

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]


def group_runs(runs: Iterable[FinishedRun]) -> list[Group]:
    """Runs that differ only in their seed form a group; of several runs with the same seed the last one counts.

    Teachers come first; otherwise groups are in the order of their first run.
    """
    found: dict[tuple[Any, ...], dict[int, FinishedRun]] = {}
    for run in runs:
        found.setdefault(tuple(_identity(run).items()), {})[run.config.seed] = run
    members = [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in found.values()]
    members.sort(key=lambda runs: _role(runs[0]) is None)
    firsts = [runs[0] for runs in members]
    labels = [
        _name(run) + _difference(run, [other for other in firsts if _name(other) == _name(run)]) for run in firsts
    ]
    return [Group(label, runs) for label, runs in zip(labels, members, strict=True)]


def _identity(run: FinishedRun) -> dict[str, Any]:
    """What the runs of a group have in common."""
    values = {name: value for name, value in vars(run.config).items() if name not in _ASIDE}
    for role in ROLES:  # the teachers of several seeds are in several folders
        if values[role] is not None:
            values[role] = _SEED_IN_PATH.sub("*", values[role])
    return values | {"is": _role(run)}


def _role(run: FinishedRun) -> str | None:
    """The role in a comparison, from the folder's name: `seed0-teacher`."""
    return next((role for role in ROLES[::-1] if re.fullmatch(rf"(seed\d+-)?{role}", run.folder.path.name)), None)


def _name(run: FinishedRun) -> str:
    role = _role(run)
    return (f"{role.replace('_', ' ')}, " if role else "") + f"{method_label(run.config.method)} ({run.config.student})"


def _difference(run: FinishedRun, namesakes: Sequence[FinishedRun]) -> str:
    """The settings in which a run differs from others of the same name."""
    others = [_identity(other) for other in namesakes]
    differing = {key: value for key, value in _identity(run).items() if any(other[key] != value for other in others)}
    return "".join(f", {key} {show(value)}" for key, value in differing.items())
