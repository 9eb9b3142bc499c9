"""The figures of an evaluation: accuracy against eps, accuracy by class, confusion under attack, adversarial images."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ard_fast._figures import COLUMN, GREY, PAGE, draw_mean, eps_axis, eps_text, figure, look, note_seeds, shorten

if TYPE_CHECKING:
    from ard_fast.evaluation.evaluator import Evaluator

PICTURES = 8
MOST_CLASSES, WORST_CLASSES = 20, 10  # of more classes only the worst are shown
_CLEAN, _ROBUST, _WORST = "#56B4E9", "#0072B2", "#D55E00"
_NORM_TEXT = {"linf": "L-infinity", "l2": "L2"}


def attack_title(name: str) -> str:
    """An attack as papers spell it: `pgd20` is PGD-20."""
    attack, *source = name.partition(" from ")
    known = {"autoattack": "AutoAttack", "square": "Square"}
    if ":" not in attack:  # else a class of one's own
        attack = known.get(attack) or re.sub(r"^(PGD|CW)(?=\d)", r"\1-", attack.upper())
    return "".join([attack, *source])


def plot_curves(
    path: Path,
    curves: Mapping[str, Sequence[Mapping[float, float]]],
    *,
    attack: str,
    norm: str,
    eps: float,
    worst_case: float | None = None,
) -> None:
    """Robust accuracy against the radius: of each network the mean and a band of one standard deviation over its seeds.

    Args:
        path: of the PNG.
        curves: for each network's name the accuracy in percent by radius, one mapping a seed; none leaves it out.
        attack: its name.
        norm: "linf" or "l2".
        eps: the radius of the evaluation.
        worst_case: accuracy in percent under all attacks at `eps`, to be marked.
    """
    few = len(curves) <= 7  # there is room for their names where all accuracies are low
    with figure(path, COLUMN if few else 1.4 * COLUMN, max(2.3, 0.15 * len(curves))) as grid:
        axes = grid[0][0]
        scale = eps_axis(axes, norm, eps)
        for place, (name, series) in enumerate(curves.items()):
            if not series:
                continue
            scaled = [{radius * scale: accuracy for radius, accuracy in one.items()} for one in series]
            named = {"label": shorten(name)} if len(curves) > 1 else {}
            draw_mean(axes, scaled, marker="o", **named, **look(place))
        note_seeds(axes, [len(series) for series in curves.values() if series])
        axes.set(ylabel=f"robust accuracy under {attack_title(attack)} (%)", ylim=(0, 100))
        axes.set_xlim(left=0)
        if worst_case is not None:
            axes.plot([eps * scale], [worst_case], "*", ms=8, color=_WORST, label="under all attacks", clip_on=False)
        axes.legend(**({"loc": "upper right"} if few else {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}))


def plot_classes(path: Path, rows: Sequence[Mapping[str, Any]], *, robust: str) -> None:
    """Clean and robust accuracy of each class as bars, the worst class marked; of many classes only the worst.

    Args:
        path: of the PNG.
        rows: of `ard_fast.evaluation.report.per_class`.
        robust: what the robust accuracy is of, for the legend.
    """
    shown = worst_classes(rows)
    worst = min(range(len(shown)), key=lambda place: _badness(shown[place]))
    with figure(path, COLUMN if len(shown) <= 12 else PAGE, 2.3) as grid:
        axes = grid[0][0]
        lowest = f"worst: {shorten(shown[worst]['class'], 14)}, {shown[worst]['worst_case_acc']:.1f} %"
        colours = [_WORST if place == worst else _ROBUST for place in range(len(shown))]
        for offset, key, colour in ((-0.2, "clean_acc", _CLEAN), (0.2, "worst_case_acc", colours)):
            places = [place + offset for place in range(len(shown))]
            axes.bar(places, [row[key] for row in shown], 0.38, color=colour)
        for colour, label in ((_CLEAN, "clean"), (_ROBUST, robust), (_WORST, lowest)):
            axes.bar(0, 0, color=colour, label=label)
        names = [shorten(row["class"], 14) for row in shown]
        axes.set_xticks(range(len(shown)), names, **_slanted(names))
        axes.get_xticklabels()[worst].set_color(_WORST)
        axes.grid(visible=False, axis="x")
        few = f"class, the {len(shown)} worst of {len(rows)}" if len(shown) < len(rows) else "class"
        axes.set(xlabel=few, ylabel="accuracy (%)", ylim=(0, 100), xlim=(-0.6, len(shown) - 0.4))
        axes.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=3,
            columnspacing=0.8,
            handlelength=1.0,
            handletextpad=0.4,
        )


def worst_classes(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All classes, or where they are many the worst ones, worst first."""
    if len(rows) <= MOST_CLASSES:
        return list(rows)
    return sorted(rows, key=_badness)[:WORST_CLASSES]


def _badness(row: Mapping[str, Any]) -> tuple[float, float]:
    return row["worst_case_acc"], row["clean_acc"]


def _slanted(names: Sequence[str]) -> dict[str, Any]:
    long = max(map(len, names)) > 2
    return {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if long else {}


def confusion(evaluator: Evaluator, classes: int) -> Tensor:
    """How many images of a true class (row) are taken for a class (column) under all attacks: int64 `[C, C]`."""
    predicted, labels = evaluator.predict(evaluator.adversarial), evaluator.split.labels.cpu()
    predicted = torch.where(evaluator.worst, labels, predicted)  # not fooled by the last attempt either
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def plot_confusion(path: Path, evaluator: Evaluator, *, class_names: Sequence[str]) -> None:
    """What the network takes each class's adversarial images for, in percent of the class.

    The images of `Evaluator.adversarial`: the first result that fooled the network, so the diagonal is each class's
    worst case. To be called after an attack.
    """
    classes = len(class_names)
    counts = confusion(evaluator, classes)
    present = (counts.sum(1) > 0).nonzero().squeeze(1).tolist()
    shares = (100.0 * counts / counts.sum(1, keepdim=True).clamp(min=1))[present]
    names = [shorten(name, 14) for name in class_names]
    with figure(path, size := max(COLUMN, 0.27 * classes), size) as grid:
        axes = grid[0][0]
        axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=100)
        for row, values in enumerate(shares.tolist()):
            for column, share in enumerate(values):
                if share >= 0.5:
                    colour = "white" if share > 55 else "black"
                    axes.text(column, row, f"{share:.0f}", ha="center", va="center", fontsize=6.5, color=colour)
        axes.set_xticks(range(classes), names, **_slanted(names))
        axes.set_yticks(range(len(present)), [names[label] for label in present])
        axes.set(xlabel="predicted class under attack", ylabel="true class")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title("percent of the true class's images", fontsize=7, color=GREY)


def draw_pictures(path: Path, evaluator: Evaluator, *, class_names: Sequence[str]) -> bool:
    """A grid of clean images, scaled perturbations and adversarial images, with the network's predictions.

    Fooled images come first, classes in turn; then images that no attack fooled. To be called after an attack.

    Returns:
        False, and no file, if the network classifies no clean image correctly.
    """
    chosen = _choose(evaluator)
    if not chosen:
        return False
    names = class_names
    positions = torch.tensor(chosen)
    clean = evaluator.split.images.cpu()[positions].to(torch.float32) / evaluator.levels
    adversarial = evaluator.adversarial[positions]
    factor, how = _visible(adversarial - clean, evaluator)
    rows = (clean, 0.5 + factor * (adversarial - clean), adversarial)
    labels: list[int] = evaluator.split.labels.cpu()[positions].tolist()
    taken_for: list[int] = evaluator.predict(adversarial).tolist()
    ball = f"{_NORM_TEXT[evaluator.norm]} eps {eps_text(evaluator.eps)}"
    about = f"{ball}; perturbation x {factor:.3g}, {how}; under each image the first attack that fooled it"
    with figure(path, PAGE, 3.1, rows=3, columns=PICTURES) as grid:
        for axes in grid[:, len(chosen) :].flat:
            axes.set_axis_off()
        for row, images in enumerate(rows):
            for column, image in enumerate(images):
                axes = grid[row][column]
                shown = image.permute(1, 2, 0).clamp(0, 1).numpy()
                gray = shown.shape[2] == 1
                axes.imshow(shown[:, :, 0] if gray else shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
        for column, position in enumerate(chosen):
            by = evaluator.fooled_by[position]
            grid[0][column].set_title(shorten(names[labels[column]], 14), fontsize=8)
            fooled = taken_for[column] != labels[column]
            text = f"{'→' if fooled else 'still'} {shorten(names[taken_for[column]], 12)}"
            grid[2][column].set_title(text, fontsize=8, color=_WORST if fooled else GREY)
            grid[2][column].set_xlabel(by.replace("autoattack: ", "AA ") if by else "(not fooled)", fontsize=7)
        for row, text in enumerate(("clean", "perturbation", "adversarial")):
            grid[row][0].set_ylabel(text)
        grid[0][0].figure.suptitle(about, fontsize=7, color=GREY)
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
