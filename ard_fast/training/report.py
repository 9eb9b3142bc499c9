"""Plots, Markdown reports and TensorBoard files of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ard_fast._files import write_atomic, write_text
from ard_fast.data import Dataset
from ard_fast.evaluation.evaluator import PGD20_STEPS, Accuracy, Attack, Evaluator, Step
from ard_fast.evaluation.figures import draw_pictures
from ard_fast.evaluation.report import markdown_table

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
    name = f"{summary['method']} ({summary['student']})"
    plot_curves(folder.plot_file, {name: [folder.metrics()]}, title=f"{summary['dataset']}, seed {summary['seed']}")


def plot_curves(
    path: Path,
    runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]],
    *,
    title: str,
    bars: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> None:
    """Validation accuracy over epochs; beside it, where given, test accuracies as bars.

    Args:
        path: a png file, replaced in one step.
        runs: for each label, the metrics of one run per seed.
        title: above the plot.
        bars: for each label, {"clean": one value per seed, "robust": ...}, in percent.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # slow to import; without pyplot no display and no global state is touched

    height = max(4.5, 1.0 + 0.36 * len(runs))
    figure = Figure(figsize=(12, height) if bars else (7, height), layout="constrained")
    axes = figure.subplots(1, 2 if bars else 1, squeeze=False, width_ratios=[3, 3] if bars else None)[0]
    shades: Any = colormaps["tab10" if len(runs) <= 10 else "tab20"]
    colours = {label: shades.colors[index % len(shades.colors)] for index, label in enumerate(runs)}
    for label, seeds in runs.items():
        for index, metrics in enumerate(seeds):
            shown = [row for row in metrics if row["val_robust"] is not None]
            epochs = [row["epoch"] for row in shown]
            name = label if index == 0 else None
            axes[0].plot(epochs, [row["val_robust"] for row in shown], color=colours[label], label=name, lw=1.2)
            axes[0].plot(epochs, [row["val_clean"] for row in shown], color=colours[label], ls=":", alpha=0.6)
    axes[0].set(xlabel="epoch", ylabel="validation accuracy, %", ylim=(0, 102))
    axes[0].set_title("solid: under PGD, dotted: clean" + (", a line a seed" if bars else ""), fontsize=10)
    axes[0].grid(alpha=0.3)
    if bars:  # their labels, in the curves' colours, are the legend
        _draw_bars(axes[1], bars, colours)
    else:
        axes[0].legend(loc="lower right", fontsize=9)
    figure.suptitle(title)
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=120))


def _draw_bars(axes: Any, bars: Mapping[str, Mapping[str, Sequence[float]]], colours: Mapping[str, Any]) -> None:
    for position, (label, values) in enumerate(bars.items()):
        for offset, key, alpha in ((-0.2, "clean", 0.4), (0.2, "robust", 1.0)):
            mean = sum(values[key]) / len(values[key])
            axes.barh(position + offset, mean, 0.38, color=colours[label], alpha=alpha)
            axes.plot(values[key], [position + offset] * len(values[key]), "k.", ms=3)
            axes.text(max(values[key]) + 1, position + offset, f"{mean:.1f}", ha="left", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=9)
    for tick, label in zip(axes.get_yticklabels(), bars, strict=True):
        tick.set_color(colours[label])
    axes.invert_yaxis()
    axes.set(xlim=(0, 112), xlabel="test accuracy, %")
    axes.set_title(f"pale: clean, full: {_ROBUST}; dots: seeds", fontsize=10)
    axes.grid(axis="x", alpha=0.3)


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
