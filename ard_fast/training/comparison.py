"""Finished runs side by side: as a table, figures, LaTeX and JSON."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from textwrap import fill
from typing import Any

from ard_fast._figures import eps_text
from ard_fast._files import write_text
from ard_fast._names import unknown
from ard_fast._tables import escape, latex_table, markdown_table
from ard_fast._typing import known
from ard_fast.evaluation.figures import attack_title, plot_curves
from ard_fast.evaluation.measure import PGD20_STEPS
from ard_fast.methods.registry import plain_method
from ard_fast.training.config import TrainConfig
from ard_fast.training.finished import FinishedRun, Group, group_runs, read_run
from ard_fast.training.report import plot_comparison, validation_curve
from ard_fast.training.run_folder import RunFolder

_ROBUST = f"PGD-{PGD20_STEPS}"
_SHARED = ("dataset", "eps", "eval_step_size", "subset", "test_subset")  # differences in these are pointed out


def mean_sd(values: Sequence[float]) -> str:
    """`mean ± sample standard deviation`, or a single value alone."""
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


@dataclass(frozen=True)
class Comparison:
    """Groups of runs side by side. Accuracies in percent on the test images, of each run's best checkpoint.

    Attributes:
        groups: the lines of the table.
        baseline: the group that gaps are measured from, or None.
    """

    groups: Sequence[Group]
    baseline: Group | None = None

    def find(self, name: str) -> Group:
        """The group with a label, or of a method if that is unique.

        Raises:
            ValueError: no such group, or several.
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
        """Attacks that all runs of some group were evaluated under, without clean and PGD-20 of the summaries."""
        names = dict.fromkeys(name for group in self.groups for run in group.runs for name in run.attacks)
        return [name for name in names if name not in ("clean", "pgd20") and any(g.attack(name) for g in self.groups)]

    def table(self, *, brief: bool = False) -> str:
        """Markdown; mean ± sample standard deviation over the seeds. `brief`: the accuracies and the time only."""
        attacks = [f"{name} %" for name in (_ROBUST, *self.attacks)]
        header = ["method (network)", "teacher", "seeds", "clean %", *attacks]
        if self.baseline is not None:
            header.append(f"{_ROBUST} - {self.baseline.label}")
        header += ["train img/s", "s per run"]
        rows = [header, *(self._row(group) for group in self.groups)]
        if brief:
            kept = [title not in ("teacher", "seeds", "train img/s") for title in header]
            rows = [list(compress(row, kept)) for row in rows]
        return markdown_table(rows[0], rows[1:])

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
        """What the figures are of, and settings that make them hard to compare."""
        first = self._configs[0]
        seeds = sorted({config.seed for config in self._configs})
        several = any(len(group.runs) > 1 for group in self.groups)
        text = (
            f"{first.dataset}, {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}: "
            f"{'mean ± sample standard deviation' if several else 'accuracy'} on the test images, best checkpoint by "
            f"validation; eps {eps_text(first.eps)}, step {eps_text(known(first.eval_step_size))}."
        )
        return text + self._differing() + self._smoothed()

    @property
    def _configs(self) -> list[TrainConfig]:
        return [run.config for group in self.groups for run in group.runs]

    def _differing(self) -> str:
        """Settings that make the figures hard to compare, as a sentence."""
        first, configs = self._configs[0], self._configs
        names = [key for key in _SHARED if any(getattr(config, key) != getattr(first, key) for config in configs)]
        return f" The runs differ in {', '.join(names)}: compare with care." if names else ""

    def _smoothed(self) -> str:
        """What PGD overstates, as a sentence, unless an attack on margins stands beside it."""
        smoothed = [group.label for group in self.groups if any(run.config.label_smoothing for run in group.runs)]
        if not smoothed or {"apgd-t", "autoattack"} & set(self.attacks):
            return ""
        labels = f"The labels of {', '.join(smoothed)} were smoothed"
        return f" {labels}, which flatters PGD: evaluate and compare under apgd-t, too."

    def _names(self) -> list[str]:
        """The groups' labels without the network where all students have the same."""
        students = {run.config.student for group in self.groups for run in group.runs if not group.is_teacher}
        short = [re.sub(r" \([^()]*\)", "", group.label, count=1) for group in self.groups]
        alike = len(students) > 1 or len(set(short)) < len(short)
        return [group.label for group in self.groups] if alike else short

    def _accuracies(self, group: Group) -> dict[str, list[float] | None]:
        """Clean and under each attack, by the attack's title, the values of the seeds."""
        attacks = {attack_title(name): group.attack(name) for name in self.attacks}
        return {"clean": group.values("clean_acc"), _ROBUST: group.values("pgd20_acc"), **attacks}

    def latex(self) -> str:
        """The table for a paper; mean ± sample standard deviation over the seeds."""
        named = list(zip(self._names(), self.groups, strict=True))
        teachers, students = (
            {name: list(self._accuracies(group).values()) for name, group in named if group.is_teacher == wanted}
            for wanted in (True, False)
        )
        counts = sorted({len(group.runs) for group in self.groups})
        seeds = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        about = [f"mean $\\pm$ sample standard deviation over {seeds} seeds"] if counts[-1] > 1 else ["one seed"]
        about += ["best in bold"] if len(students) > 1 else []
        datasets = " and ".join(dict.fromkeys(config.dataset for config in self._configs))
        caption = (
            f"Test accuracy (\\%) on {escape(datasets)}, clean and under attack in the $\\ell_\\infty$ ball of radius "
            f"${eps_text(self._configs[0].eps)}$: {', '.join(about)}.{escape(self._differing())}"
        )
        return latex_table(list(self._accuracies(self.groups[0])), teachers, students, caption=caption)

    def plot(self, path: Path) -> dict[str, Path]:
        """Draw the figures, and return them by their captions: accuracies, and against eps where that is known."""
        names, pictures = self._names(), {"test accuracy, and validation accuracy over epochs": path}
        plot_comparison(
            path,
            {
                name: [validation_curve(run.folder.metrics(), "val_robust") for run in group.runs]
                for name, group in zip(names, self.groups, strict=True)
            },
            {
                name: {attack: values for attack, values in self._accuracies(group).items() if values}
                for name, group in zip(names, self.groups, strict=True)
            },
            attack=f"PGD-{self._configs[0].val_steps}",
        )
        attacks = {attack for group in self.groups for attack in group.runs[0].curves}
        curves = {attack: [group.curve(attack) for group in self.groups] for attack in sorted(attacks)}
        known_for = {attack: sum(map(bool, series)) for attack, series in curves.items()}
        attack = max(known_for, key=lambda name: known_for[name], default=None)
        if attack is not None and known_for[attack]:
            target = path.with_stem(f"{path.stem}_vs_eps")
            series = dict(zip(names, curves[attack], strict=True))
            plot_curves(target, series, attack=attack, norm="linf", eps=self._configs[0].eps)
            pictures["robust accuracy against eps"] = target
        return pictures

    def as_json(self) -> dict[str, Any]:
        """Every figure, one value for each seed."""
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
        """compare.md, compare.tex, compare.json and the figures."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "compare.json", json.dumps(self.as_json(), indent=2) + "\n")
        self.write_report(folder / "compare.md", folder / "compare.png", self.gap_lines())

    def write_report(self, report: Path, plot: Path, lines: Sequence[str], links: Sequence[str] = ()) -> None:
        """The report in Markdown with its figures, and beside it the table in LaTeX.

        Args:
            report: the Markdown file.
            plot: the figure of accuracies, in the same folder.
            lines: below the table.
            links: below the figures.
        """
        write_text(report.with_suffix(".tex"), self.latex())
        pictures = [text for caption, path in self.plot(plot).items() for text in (f"![{caption}]({path.name})", "")]
        middle = [self.note(), "", self.table(), "", *lines, *([""] if lines else [])]
        text = ["# Comparison", "", *middle, *pictures, *links]
        write_text(report, "\n".join(text).rstrip() + "\n")

    def gap_lines(self) -> list[str]:
        """A line for each group but the baseline; none without a baseline."""
        if self.baseline is None:
            return []
        return [gap_line(group, self.baseline) for group in self.groups if group is not self.baseline]


def gaps(group: Group, other: Group) -> list[float]:
    """Differences under PGD-20 in points: for each seed where both have the same seeds, else of the means."""
    ours, theirs = group.values("pgd20_acc"), other.values("pgd20_acc")
    if group.seeds == other.seeds:
        return [a - b for a, b in zip(ours, theirs, strict=True)]
    return [statistics.fmean(ours) - statistics.fmean(theirs)]


def gap_line(group: Group, other: Group) -> str:
    """The gap between two groups as a sentence."""
    points = gaps(group, other)
    by_seed = f" (by seed: {', '.join(f'{gap:+.2f}' for gap in points)})" if len(points) > 1 else ""
    return f"{group.label} - {other.label} under {_ROBUST}: {statistics.fmean(points):+.2f} points{by_seed}"


def _best_validation(run: FinishedRun) -> float:
    """Robust accuracy in percent on the validation images, of the best epoch by it."""
    return max((row["val_robust"] for row in run.folder.metrics() if row["val_robust"] is not None), default=0.0)


def stronger_forms(groups: Mapping[str, Group]) -> dict[str, dict[str, float]]:
    """Of each method that was trained plainly and as NAME-ema, the form that is stronger on the validation images.

    Args:
        groups: by method.

    Returns:
        For the stronger form the robust accuracy of both in percent: of each seed's best epoch, the mean over seeds.
    """
    found: dict[str, dict[str, float]] = {}
    for name in groups:
        plain = plain_method(name)
        if name != plain and plain in groups:
            forms = (plain, name)
            scores = {form: statistics.fmean(map(_best_validation, groups[form].runs)) for form in forms}
            found[max(forms, key=lambda form: scores[form])] = scores
    return found


def report_comparison(config: TrainConfig, folder: RunFolder, results: dict[str, list[RunFolder]]) -> None:
    """Table, plot, report and summary of a comparison: the last of `compare_methods` against each other one.

    Of a method among the others that was trained in both forms, plainly and as NAME-ema, only the stronger counts.

    Args:
        config: of the comparison.
        folder: its folder.
        results: those of `run_comparison`.
    """
    groups = {name: group_runs(known(read_run(run)) for run in runs)[0] for name, runs in results.items()}
    comparison = Comparison(list(groups.values()))
    *others, last = config.compare_methods
    headline = groups[last]
    stronger = stronger_forms({name: groups[name] for name in others})
    lines = [
        f"of {' and '.join(scores)} the stronger is {name}, by the validation images alone: "
        f"{', '.join(f'{form} {score:.2f} %' for form, score in scores.items())} under PGD-{config.val_steps}"
        for name, scores in stronger.items()
    ]
    weaker = {form for name, scores in stronger.items() for form in scores if form != name}
    lines += [gap_line(headline, groups[name]) for name in others if name not in weaker]
    print("\n".join(["", comparison.table(brief=True), "", *lines, "", fill(comparison.note(), 100)]))
    chosen = max(headline.runs, key=_best_validation).folder
    best = chosen.best.relative_to(folder.path)
    links = [f"- [{one.path.name}]({one.path.name}/report.md)" for runs in results.values() for one in runs]
    lines += ["", f"The best {headline.label} by validation: {best}."]
    comparison.write_report(folder.report_file, folder.plot_file, lines, links)
    folder.rewrite_metrics(
        {"run": one.path.name, **row} for runs in results.values() for one in runs for row in one.metrics()
    )
    summary = {
        **headline.runs[0].summary,
        "seed": headline.seeds,
        "best": str(best),
        "clean_acc": statistics.fmean(headline.values("clean_acc")),
        "pgd20_acc": statistics.fmean(headline.values("pgd20_acc")),
        "images_per_s": statistics.fmean(headline.values("images_per_s")),
        "elapsed_s": sum(sum(group.values("elapsed_s")) for group in groups.values()),
        "warnings": [
            f"{run.folder.path.name}: {warning}"
            for group in groups.values()
            for run in group.runs
            for warning in run.summary.get("warnings", ())
        ],
        "stronger": stronger,
        "runs": {name: [run.summary for run in group.runs] for name, group in groups.items()},
    }
    folder.write_summary(summary)
