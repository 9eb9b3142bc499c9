"""Runs that differ in nothing but their seed, as one line of a table."""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ard_fast.training.comparison.runs import FinishedRun
from ard_fast.training.config import ROLES
from ard_fast.training.descriptions import show
from ard_fast.training.settings import MachineSettings, OutputSettings

# What does not make a run another one: where it ran, what it wrote beside its results, which comparison it was part of.
_ASIDE = {
    "seed",
    "data_dir",
    "compare_methods",
    "compare_seeds",
    *(item.name for part in (MachineSettings, OutputSettings) for item in dataclasses.fields(part)),
}
_SEED_IN_PATH = re.compile(r"seed[-_]?\d+|\bs\d+\b", re.IGNORECASE)


@dataclass(frozen=True)
class Group:
    """Runs of one configuration.

    Attributes:
        label: for people, different for every group of a comparison.
        runs: by seed.
    """

    label: str
    runs: Sequence[FinishedRun]

    def values(self, key: str) -> list[float]:
        """A figure of the summaries, a value a run."""
        return [run.summary[key] for run in self.runs]

    def attack(self, name: str) -> list[float] | None:
        """Robust accuracy under an attack, or None if not all the runs were evaluated under it."""
        found = [run.attacks[name] for run in self.runs if name in run.attacks]
        return found if len(found) == len(self.runs) else None

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]


def mean_sd(values: Sequence[float]) -> str:
    """`mean ± sample standard deviation`, or the one value."""
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def group_runs(runs: Iterable[FinishedRun]) -> list[Group]:
    """Runs by configuration, in the order of the first of each; each seed once, the last run of it."""
    found: dict[tuple[Any, ...], dict[int, FinishedRun]] = {}
    for run in runs:
        found.setdefault(tuple(_identity(run).items()), {})[run.config.seed] = run
    members = [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in found.values()]
    names = [_name(group[0]) for group in members]
    groups = []
    for name, group in zip(names, members, strict=True):
        namesakes = [other[0] for other, same in zip(members, names, strict=True) if same == name]
        groups.append(Group(name + _difference(group[0], namesakes), group))
    return groups


def _identity(run: FinishedRun) -> dict[str, Any]:
    values = {name: value for name, value in vars(run.config).items() if name not in _ASIDE}
    for role in ROLES:  # the teachers of several seeds lie in several folders
        if values[role] is not None:
            values[role] = _SEED_IN_PATH.sub("*", values[role])
    return values | {"is": _role(run)}


def _role(run: FinishedRun) -> str | None:
    """The role in a comparison, from the folder's name: `seed0-teacher`."""
    return next((role for role in ROLES[::-1] if re.fullmatch(rf"(seed\d+-)?{role}", run.folder.path.name)), None)


def _name(run: FinishedRun) -> str:
    role = _role(run)
    return (f"{role.replace('_', ' ')}, " if role else "") + f"{run.config.method} ({run.config.student})"


def _difference(run: FinishedRun, namesakes: Sequence[FinishedRun]) -> str:
    """The settings that tell a run from others of the same name."""
    identities = [_identity(other) for other in namesakes]
    differing = [key for key, value in _identity(run).items() if any(other[key] != value for other in identities)]
    values = _identity(run)
    texts = [f"{key} {show(values[key])}" for key in differing]
    return "".join(f", {text}" for text in texts)
