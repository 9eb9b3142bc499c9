"""Plots, Markdown reports and TensorBoard files of runs."""

from __future__ import annotations

import itertools
import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ard_fast._figures import COLUMN, GREY, PAGE, deviation, draw_mean, figure, look, name_lines, note_seeds, shorten
from ard_fast._files import write_text
from ard_fast._tables import markdown_table
from ard_fast.data import Dataset
from ard_fast.evaluation.evaluator import Evaluator
from ard_fast.evaluation.figures import draw_pictures
from ard_fast.evaluation.measure import PGD20_STEPS, Accuracy
from ard_fast.evaluation.results import Attack, Step

if TYPE_CHECKING:
    from ard_fast.training.run_folder import RunFolder

_ROBUST = f"PGD-{PGD20_STEPS}"
_EXAMPLES = 64  # test images that the pictures are chosen from


def draw_examples(
    path: Path, network: nn.Module, dataset: Dataset, attack: Attack, *, eps: float, channels_last: bool
) -> bool:
    """Pictures of some test images, clean and under attack, with what the network takes them for.

    Returns:
        Whether there was anything to show: an image that is right as it is.
    """
    chosen = dataset.test.sample(min(_EXAMPLES, len(dataset.test)))
    evaluator = Evaluator(network, chosen, levels=dataset.levels, norm="linf", eps=eps, channels_last=channels_last)
    evaluator.clean()
    evaluator.run(Step(_ROBUST, ((_ROBUST, attack),)))
    return draw_pictures(path, evaluator, class_names=dataset.class_names)


def write_run_report(
    folder: RunFolder,
    summary: Mapping[str, Any],
    conventions: Sequence[str],
    last: Accuracy,
    best_epoch: int,
    *,
    pictures: bool,
) -> None:
    """report.md and plot.png of one run.

    The summary has the test figures of the best checkpoint, `last` has those of the last epoch. `conventions` are the
    lines printed when the run started, `pictures` what `draw_examples` said.
    """
    rows = [
        [f"best (epoch {best_epoch}, by validation)", f"{summary['clean_acc']:.2f}", f"{summary['pgd20_acc']:.2f}"],
        [f"last (epoch {summary['epochs']})", f"{last.clean:.2f}", f"{last.robust:.2f}"],
    ]
    text = [
        f"# {summary['method']}: {summary['student']} on {summary['dataset']}, seed {summary['seed']}",
        "",
        markdown_table(["checkpoint, on the test images", "clean %", f"{_ROBUST} %"], rows),
        "",
        *(line for warning in summary["warnings"] for line in (f"**Warning**: {warning}", "")),
        f"{summary['images_per_s']:.0f} images/s while training, {summary['elapsed_s']:.1f} s in all.",
        "",
        *(f"- {line}" for line in conventions),
        "",
        f"![accuracy over epochs]({folder.plot_file.name})",
    ]
    if pictures:
        text += ["", f"![test images, clean and under {_ROBUST}]({folder.pictures_file.name})"]
    write_text(folder.report_file, "\n".join(text) + "\n")
    _plot_run(folder.plot_file, folder.metrics(), best_epoch, f"PGD-{folder.config().val_steps}")


def validation_curve(metrics: Sequence[Mapping[str, Any]], key: str) -> dict[float, float]:
    """Accuracy in percent by epoch, where the run was validated."""
    return {row["epoch"]: row[key] for row in metrics if row[key] is not None}


def _plot_run(path: Path, metrics: Sequence[Mapping[str, Any]], best_epoch: int, attack: str) -> None:
    with figure(path, COLUMN, 2.3) as grid:
        axes, ends, colours = grid[0][0], {}, {}
        for place, (name, key) in enumerate((("clean", "val_clean"), (attack, "val_robust"))):
            curve, colours[name] = validation_curve(metrics, key), look(place)["color"]
            if curve:
                ends[name] = draw_mean(axes, [curve], **look(place))
        last = metrics[-1]["epoch"]
        axes.set(xlabel="epoch", ylabel="validation accuracy (%)", xlim=(min(1, last - 1), last), ylim=(0, 100))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.axvline(best_epoch, color=GREY, lw=0.6, ls=":", zorder=0)
        axes.set_title(f"dotted: epoch {best_epoch}, the best by validation", fontsize=7, color=GREY)
        name_lines(axes, ends, colours)


def plot_comparison(
    path: Path,
    curves: Mapping[str, Sequence[Mapping[float, float]]],
    accuracies: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    attack: str,
) -> None:
    """Test accuracies of several methods side by side, beside their validation curves: means and standard deviations.

    Args:
        path: of the PNG.
        curves: for each label the robust validation accuracy in percent by epoch, one mapping a seed.
        accuracies: for each label, clean and under each attack, the test accuracies in percent of the seeds.
        attack: what the curves are of.
    """
    styles = [look(place) for place in range(len(curves))]
    rows = [textwrap.fill(label, 30) for label in accuracies]
    lines = sum(row.count("\n") + 1 for row in rows)
    names = list(dict.fromkeys(name for by_attack in accuracies.values() for name in by_attack))
    columns = legend_columns(names)
    with figure(path, PAGE, max(2.4, 0.145 * (lines + math.ceil(len(names) / columns)) + 0.75), columns=2) as grid:
        left, right = grid[0]
        _draw_accuracies(left, accuracies, styles, names, columns)
        left.set_yticks(range(len(rows)), rows)
        for tick, style in zip(left.get_yticklabels(), styles, strict=True):
            tick.set_color(style["color"])
        ends = {}
        for (label, series), style in zip(curves.items(), styles, strict=True):
            if set.intersection(*map(set, series)):
                ends[label] = draw_mean(right, series, **style)
        last = max((end[0] for end in ends.values()), default=1)
        right.set(xlabel="epoch", ylabel=f"validation accuracy, {attack} (%)", xlim=(min(1, last - 1), last))
        right.xaxis.get_major_locator().set_params(integer=True)
        note_seeds(right, [len(series) for series in curves.values()])
        name_lines(right, ends, {label: style["color"] for label, style in zip(curves, styles, strict=True)})


def legend_columns(names: Sequence[str]) -> int:
    """How many columns of these names fit above one half of a page."""
    for columns in range(min(len(names), 5), 1, -1):
        rows = math.ceil(len(names) / columns)
        widest = [max(len(shorten(name)) for name in names[at : at + rows]) for at in range(0, len(names), rows)]
        if sum(0.25 + 0.055 * count for count in widest) <= 0.5 * PAGE:  # inches: a mark, and letters of 7 points
            return columns
    return 1


def _draw_accuracies(
    axes: Any,
    accuracies: Mapping[str, Mapping[str, Sequence[float]]],
    styles: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    columns: int,
) -> None:
    """A row for each label: a mark and its standard deviation for each attack; their names in columns above."""
    markers = dict(zip(names, itertools.cycle("osD^vP*X<>pHhd8"), strict=False))
    for row, (by_attack, style) in enumerate(zip(accuracies.values(), styles, strict=True)):
        for name, values in by_attack.items():
            fill = "white" if name == names[0] else style["color"]
            mean, error = statistics.fmean(values), deviation(values)
            axes.errorbar(
                mean, row, xerr=error or None, fmt=markers[name], color=style["color"], mfc=fill, elinewidth=0.8
            )
    for name in names:
        axes.plot([], [], markers[name], color=GREY, mfc="white" if name == names[0] else GREY, label=shorten(name))
    axes.set(xlabel="test accuracy (%)", ylim=(len(accuracies) - 0.5, -0.5))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns, columnspacing=0.8, handletextpad=0.1)


def require_tensorboard() -> None:
    """Refuse --tensorboard where the package is missing.

    Raises:
        ValueError: says how to get it.
    """
    if find_spec("tensorboard") is None:
        raise ValueError("tensorboard: the package is not installed; pip install tensorboard, or leave the flag out")


class Board:
    """Writes one run's rows for TensorBoard, as scalars over the epochs.

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
