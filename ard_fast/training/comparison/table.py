"""A comparison as a table, a plot, Markdown and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ard_fast._files import write_text
from ard_fast._names import unknown
from ard_fast.evaluation import PGD20_STEPS
from ard_fast.training.comparison.groups import Group, mean_sd
from ard_fast.training.report import markdown_table, plot_curves

_ROBUST = f"PGD-{PGD20_STEPS}"
_SHARED = ("dataset", "eps", "eval_step_size", "subset", "test_subset")  # what should be the same in all the runs


@dataclass(frozen=True)
class Comparison:
    """Groups of runs side by side. Accuracies in percent on the test images, of each run's best checkpoint.

    Attributes:
        groups: the lines.
        baseline: what the others' gaps are to, or None.
    """

    groups: Sequence[Group]
    baseline: Group | None = None

    def find(self, name: str) -> Group:
        """The group of a label, or of a method that only one student was trained by.

        Raises:
            ValueError: none, or several.
        """
        labels = {group.label: group for group in self.groups}
        students = [group for group in self.groups if group.label.startswith(f"{name} (")]
        if name not in labels and len(students) != 1:
            if students:
                raise ValueError(f"baseline: {name!r} is several: {'; '.join(group.label for group in students)}")
            raise ValueError(f"baseline: {unknown('run', name, labels)}")
        return labels.get(name) or students[0]

    @property
    def attacks(self) -> list[str]:
        """Attacks that some group was evaluated under, beside clean and PGD-20 of the summaries."""
        names = dict.fromkeys(name for group in self.groups for run in group.runs for name in run.attacks)
        return [
            name
            for name in names
            if name not in ("clean", "pgd20") and any(group.attack(name) for group in self.groups)
        ]

    def table(self) -> str:
        """Markdown; mean ± sample standard deviation over the seeds."""
        header = [
            "method (network)",
            "teacher",
            "seeds",
            "clean %",
            f"{_ROBUST} %",
            *(f"{name} %" for name in self.attacks),
        ]
        if self.baseline is not None:
            header.append(f"{_ROBUST} - {self.baseline.label}")
        rows = [self._row(group) for group in self.groups]
        return markdown_table([*header, "train img/s", "s a run"], rows)

    def _row(self, group: Group) -> list[str]:
        teacher = group.runs[0].summary["teacher"]
        cells = [group.label, "-" if teacher is None else Path(teacher).name, str(len(group.runs))]
        cells += [mean_sd(group.values("clean_acc")), mean_sd(group.values("pgd20_acc"))]
        for name in self.attacks:
            values = group.attack(name)
            cells.append("-" if values is None else mean_sd(values))
        if self.baseline is not None:
            cells.append("-" if group is self.baseline else f"{statistics.fmean(gaps(group, self.baseline)):+.2f}")
        cells.append(f"{statistics.fmean(group.values('images_per_s')):.0f}")
        cells.append(f"{statistics.fmean(group.values('elapsed_s')):.1f}")
        return cells

    def note(self) -> str:
        """What the figures are of, and what makes them hard to compare."""
        configs = [run.config for group in self.groups for run in group.runs]
        first = configs[0]
        differing = [key for key in _SHARED if any(getattr(config, key) != getattr(first, key) for config in configs)]
        seeds = sorted({config.seed for config in configs})
        text = (
            f"{first.dataset}, seeds {', '.join(map(str, seeds))}: mean ± sample standard deviation on the test "
            f"images, best checkpoint by validation; eps {first.eps:.5g}, step {first.eval_step_size:.5g}."
        )
        if differing:
            text += f" Not all of the same {', '.join(differing)}: compare with care."
        return text

    def plot(self, path: Path) -> None:
        """Validation curves, and the test accuracies as bars."""
        plot_curves(
            path,
            {group.label: [run.folder.metrics() for run in group.runs] for group in self.groups},
            title=", ".join(dict.fromkeys(run.config.dataset for group in self.groups for run in group.runs)),
            bars={
                group.label: {"clean": group.values("clean_acc"), "robust": group.values("pgd20_acc")}
                for group in self.groups
            },
        )

    def as_json(self) -> dict[str, Any]:
        """Every figure, a value a seed."""
        return {
            "note": self.note(),
            "baseline": self.baseline and self.baseline.label,
            "groups": [
                {
                    "label": group.label,
                    **{
                        key: group.runs[0].summary[key] for key in ("method", "dataset", "student", "teacher", "epochs")
                    },
                    "seeds": group.seeds,
                    **{key: group.values(key) for key in ("clean_acc", "pgd20_acc", "images_per_s", "elapsed_s")},
                    "attacks": {name: group.attack(name) for name in self.attacks},
                    "pgd20_gap": None if self.baseline is None else gaps(group, self.baseline),
                    "folders": [str(run.folder.path) for run in group.runs],
                }
                for group in self.groups
            ],
        }

    def write(self, folder: Path) -> None:
        """compare.md, compare.json and compare.png."""
        folder.mkdir(parents=True, exist_ok=True)
        self.plot(folder / "compare.png")
        write_text(folder / "compare.json", json.dumps(self.as_json(), indent=2) + "\n")
        lines = self.gap_lines()
        text = ["# Comparison", "", self.note(), "", self.table(), "", *lines, "", "![curves](compare.png)"]
        write_text(folder / "compare.md", "\n".join(text) + "\n")

    def gap_lines(self) -> list[str]:
        """A line for each group beside the baseline; none without one."""
        if self.baseline is None:
            return []
        return [gap_line(group, self.baseline) for group in self.groups if group is not self.baseline]


def gaps(group: Group, other: Group) -> list[float]:
    """Points under PGD-20, seed by seed where both have the same seeds, else of the means."""
    ours, theirs = group.values("pgd20_acc"), other.values("pgd20_acc")
    if group.seeds == other.seeds:
        return [a - b for a, b in zip(ours, theirs, strict=True)]
    return [statistics.fmean(ours) - statistics.fmean(theirs)]


def gap_line(group: Group, other: Group) -> str:
    """How far a group is ahead of another one, in words."""
    points = gaps(group, other)
    by_seed = f" (by seed: {', '.join(f'{gap:+.2f}' for gap in points)})" if len(points) > 1 else ""
    return f"{group.label} - {other.label} under {_ROBUST}: {statistics.fmean(points):+.2f} points{by_seed}"
