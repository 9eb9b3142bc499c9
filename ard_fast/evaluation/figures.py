"""The two figures of an evaluation: accuracy against eps, and a grid of adversarial images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ard_fast._files import write_atomic
from ard_fast.evaluation.evaluator import CurvePoint, Evaluator, StepResult

_NORM_TEXT = {"linf": "L-infinity", "l2": "L2"}
PICTURES = 8


def plot_accuracy(
    path: Path, evaluator: Evaluator, curve_name: str, curve: Sequence[CurvePoint], *, title: str
) -> None:
    """Robust accuracy against the radius: the curve, and every attack at its own radius.

    To be called after `clean`. Attacks without an accuracy of their own show the worst case.
    """
    from matplotlib.figure import Figure  # slow to import; without pyplot no display and no global state is touched

    results, norm, eps, levels = evaluator.results, evaluator.norm, evaluator.eps, evaluator.levels
    scale, unit = (255, "eps, in 1/255 of the pixel range") if norm == "linf" and levels == 255 else (1, "eps")
    figure = Figure(figsize=(10.5, max(4.2, 1.6 + 0.34 * len(results))), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1, 1])
    clean, worst = results[0].worst_case_acc, results[-1].worst_case_acc
    if curve:
        radii, accuracies = [point.eps * scale for point in curve], [point.robust_acc for point in curve]
        left.plot(radii, accuracies, "-o", color="C0", ms=4, label=f"under {curve_name} at each eps")
    left.plot([0], [clean], "s", color="0.5", ms=7, label="clean", zorder=3)
    if len(results) > 1:
        left.plot([eps * scale], [worst], "*", color="C3", ms=13, label="worst case of all attacks", zorder=3)
    left.axvline(eps * scale, color="0.7", lw=1, ls="--", zorder=0)
    left.set(xlabel=f"{_NORM_TEXT[norm]} {unit}", ylabel="accuracy, %", ylim=(-2, 102))
    left.set_xlim(left=-0.03 * max([eps * scale, *(point.eps * scale for point in curve)]) or None)
    left.grid(alpha=0.3)
    left.legend(loc="best", fontsize=9)
    left.set_title("accuracy against the radius", fontsize=10)
    _draw_bars(right, results)
    right.set_title(f"accuracy under each attack alone, eps {_eps_text(eps, levels, norm)}", fontsize=10)
    figure.suptitle(title, fontsize=11)
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=120))


def _draw_bars(axes: Any, results: Sequence[StepResult]) -> None:
    """A horizontal bar for each attack; stages of an ensemble are narrower, paler bars above it."""
    bars = []  # (name, accuracy, height, colour, alpha)
    for result in results:
        if len(result.stages) > 1:
            for stage in result.stages:
                bars.append((f"{stage.name}, stage", 100.0 * stage.left / result.total, 0.5, "C3", 0.4))
        known = result.robust_acc is not None
        accuracy = result.robust_acc if known else result.worst_case_acc
        colour = "0.5" if result is results[0] else "C3" if len(result.stages) > 1 else "C0"
        bars.append((result.name if known else f"{result.name} (worst case)", accuracy, 0.75, colour, 1.0))
    for place, (_, accuracy, height, colour, alpha) in enumerate(bars):
        axes.barh(place, accuracy, height, color=colour, alpha=alpha)
        axes.text(accuracy + 1, place, f"{accuracy:.2f}", va="center", fontsize=9)
    axes.set_yticks(range(len(bars)), [bar[0] for bar in bars], fontsize=9)
    axes.invert_yaxis()
    axes.set(xlim=(0, 112), xticks=range(0, 101, 20), xlabel="accuracy, %")
    axes.grid(axis="x", alpha=0.3)


def draw_pictures(path: Path, evaluator: Evaluator, *, class_names: Sequence[str]) -> bool:
    """A grid of clean images, scaled perturbations and adversarial images, with the network's predictions.

    Fooled images come first, classes in turn; then images that no attack fooled. To be called after an attack.

    Returns:
        False, and no file, if the network classifies no clean image correctly.
    """
    chosen = _choose(evaluator)
    if not chosen:
        return False
    from matplotlib.figure import Figure

    names = class_names
    positions = torch.tensor(chosen)
    clean = evaluator.split.images.cpu()[positions].to(torch.float32) / evaluator.levels
    adversarial = evaluator.adversarial[positions]
    factor, how = _visible(adversarial - clean, evaluator)
    rows = (clean, 0.5 + factor * (adversarial - clean), adversarial)
    labels = evaluator.split.labels.cpu()[positions].tolist()
    taken_for = evaluator.predict(adversarial).tolist()
    figure = Figure(figsize=(1.3 * len(chosen) + 0.8, 5.3), layout="constrained")
    grid = figure.subplots(3, len(chosen), squeeze=False)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            axes = grid[row][column]
            pixels = image.permute(1, 2, 0).clamp(0, 1).numpy()
            gray = pixels.shape[2] == 1
            axes.imshow(pixels[:, :, 0] if gray else pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
    for column, position in enumerate(chosen):
        by = evaluator.fooled_by[position]
        grid[0][column].set_title(names[labels[column]], fontsize=10)
        fooled = taken_for[column] != labels[column]
        text = f"{'→' if fooled else 'still'} {names[taken_for[column]]}"
        grid[2][column].set_title(text, fontsize=10, color="C3" if fooled else "C2")
        grid[2][column].set_xlabel(_short(by) if by else "(not fooled)", fontsize=8)
    for row, text in enumerate(("clean", "perturbation", "adversarial")):
        grid[row][0].set_ylabel(text, fontsize=10)
    figure.suptitle(
        f"{_NORM_TEXT[evaluator.norm]} eps {_eps_text(evaluator.eps, evaluator.levels, evaluator.norm)}; perturbation "
        f"x {factor:.3g}, {how}; under each image the first attack that fooled it",
        fontsize=9,
    )
    write_atomic(path, lambda part: figure.savefig(part, format="png", dpi=120))
    return True


def _choose(evaluator: Evaluator) -> list[int]:
    """Up to `PICTURES` positions: fooled images first, classes in turn."""
    labels = evaluator.split.labels.tolist()
    seen: dict[tuple[int, bool], int] = {}
    ranked = []
    for position, by in enumerate(evaluator.fooled_by):
        if by != "clean":
            kind = labels[position], by is None
            turn = seen[kind] = seen.get(kind, 0) + 1
            ranked.append((by is None, turn, labels[position], position))
    return [entry[-1] for entry in sorted(ranked)[:PICTURES]]


def _visible(difference: Tensor, evaluator: Evaluator) -> tuple[float, str]:
    """The factor that scales perturbations around mid-grey, and the meaning of black and white."""
    if evaluator.norm == "linf" and evaluator.eps > 0:
        return 0.5 / evaluator.eps, "grey: unchanged, white and black: ±eps"
    sizes = difference.abs().flatten().sort().values
    large = float(sizes[int(0.995 * (len(sizes) - 1))]) or float(
        sizes[-1]
    )  # a few very large ones would hide the others
    if large == 0:
        return 1.0, "grey: unchanged"
    return 0.5 / large, f"grey: unchanged, white and black: ±{large:.3g} and more"


def _eps_text(eps: float, levels: int, norm: str) -> str:
    whole = levels == 255 and norm == "linf" and abs(eps * 255 - round(eps * 255)) < 1e-9
    return f"{round(eps * 255)}/255" if whole else f"{eps:.4g}"


def _short(name: str) -> str:
    return name.replace("autoattack: ", "AA ")
