"""Figures and tables of docs/results.md: `python benchmarks/table_figures.py benchmarks/results/table_mnist.json ...`.

Of each file that `benchmarks/train_table.py --record` wrote, docs/images/NAME_cost.png shows robust accuracy against
the cost of training, NAME_curves.png validation accuracy over it, NAME_tradeoff.png clean against robust accuracy. The
attack is the last of the table's, or --attack. Rows of less than half the best accuracy are only named.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from _table_record import table
from matplotlib.ticker import LogLocator, NullLocator
from PIL import Image

from ard_fast._figures import GREY, PAGE, deviation, draw_mean, figure, look, shorten
from ard_fast._files import write_text
from ard_fast.evaluation.figures import attack_title

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results.md"
IMAGES = RESULTS.parent / "images"
COLOURED = ("at", "at-ema", "ard", "fast-ard", "fgsm-ard", "rslad")  # rows by their labels; the others are grey
UNITS = {"cpu_s": "CPU minutes of training", "elapsed_s": "minutes of training"}
LIGHT, LABEL = "0.7", 7  # of grey lines; points
HEIGHT = 1.2 * LABEL  # of a name with the space around it
# Where a name may stand: sides (right 1, left -1, above or below 0) and heights up, the better ones first.
PLACES = [(side, up) for far in (0, 0.6, 1, 1.5, 2, 2.6, 3.3, 4.1, 5) for side in (1, -1, 0) for up in {far, -far}
          if side or far >= 1]  # fmt: skip
Row = Mapping[str, Any]


def colour(row: Row) -> str:
    """Of a row's mark, line and name."""
    name = row["label"].lower()
    return "black" if row["is_teacher"] else look(COLOURED.index(name))["color"] if name in COLOURED else GREY


def write_names(
    axes: Any,
    points: Mapping[str, tuple[float, float]],
    colours: Mapping[str, str],
    drawn: Sequence[tuple[float, float]] = (),
) -> None:
    """Write a name beside each point, apart from the points, from what is drawn and from each other; the last call.

    Args:
        axes: with the points.
        points: by their names.
        colours: likewise.
        drawn: points of lines.
    """
    axes.figure.draw_without_rendering()  # settles the layout
    scale = 72 / axes.figure.dpi
    box = [side * scale for side in axes.get_window_extent().extents]
    at = {name: [float(value) * scale for value in axes.transData.transform(xy)] for name, xy in points.items()}
    lines = [[float(value) * scale for value in axes.transData.transform(xy)] for xy in drawn]
    taken: list[tuple[float, ...]] = [(x - 3, y - 3, x + 3, y + 3) for x, y in at.values()]
    taken += [(x - 1.2, y - 1.2, x + 1.2, y + 1.2) for x, y in lines]
    for name, (x, y) in sorted(at.items(), key=lambda one: -one[1][1]):
        width = 0.53 * LABEL * len(shorten(name)) + 3

        def place(side: int, up: float, x: float = x, y: float = y, width: float = width) -> tuple[float, ...]:
            left, middle = x + side * 5 - width * (1 - side) / 2, y + up * HEIGHT
            return left, middle - HEIGHT / 2, left + width, middle + HEIGHT / 2

        def cost(choice: tuple[int, float], place: Any = place) -> float:
            one = place(*choice)
            outside = max(0.0, box[0] - one[0], box[1] - one[1], one[2] - box[2] - 60, one[3] - box[3])
            return sum(_overlap(one, other) for other in taken) + 50 * outside + 0.5 * PLACES.index(choice)

        side, up = min(PLACES, key=cost)
        taken.append(place(side, up))
        line = {"arrowstyle": "-", "lw": 0.4, "color": colours[name], "shrinkA": 0, "shrinkB": 3}
        axes.annotate(
            shorten(name),
            points[name],
            (side * 5, up * HEIGHT),
            textcoords="offset points",
            fontsize=LABEL,
            ha={1: "left", -1: "right", 0: "center"}[side],
            va="center",
            color=colours[name],
            annotation_clip=False,
            arrowprops={**line, "relpos": ((1 - side) / 2, 0.5)} if abs(up) > 1.2 else None,
        )


def _overlap(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two boxes (left, bottom, right, top), in square points."""
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
    return max(0.0, sides[0]) * max(0.0, sides[1])


def draw_points(path: Path, rows: Sequence[Row], xs: Sequence[Sequence[float]], attack: str, **axis: Any) -> None:
    """A mark with standard deviations for each row: robust accuracy on the test images against the values of `xs`."""
    with figure(path, 0.8 * PAGE, 3.2) as grid:
        axes, points, drawn = grid[0][0], {}, []
        axes.set(ylabel=f"test accuracy, {attack_title(attack)} (%)", **axis)
        shown = _enough(axes, rows, [statistics.fmean(row["figures"][attack]) for row in rows])
        for row, x in zip(rows, xs, strict=True):
            if row not in shown:
                continue
            y = row["figures"][attack]
            points[row["label"]] = point = statistics.fmean(x), statistics.fmean(y)
            marker = {"marker": "*", "ms": 8} if row["is_teacher"] else {"marker": "o"}
            errors = {"xerr": deviation(x) or None, "yerr": deviation(y) or None, "elinewidth": 0.6}
            axes.errorbar(*point, **errors, **marker, color=colour(row), ls="none")
            for share in (-1, -0.75, -0.5, -0.25, 0.25, 0.5, 0.75, 1):
                drawn += [(point[0] + share * deviation(x), point[1]), (point[0], point[1] + share * deviation(y))]
        axes.margins(0.1)
        _log_axis(axes)
        write_names(axes, points, {row["label"]: colour(row) for row in rows}, drawn)


def draw_curves(path: Path, rows: Sequence[Row], attack: str, unit: str) -> None:
    """Robust accuracy on the validation images over the cost of training, of the students."""
    with figure(path, 0.8 * PAGE, 3.2) as grid:
        axes, ends, drawn = grid[0][0], {}, []
        shown = _enough(axes, rows, [statistics.fmean(curve[-1][3] for curve in row["curves"]) for row in rows])
        for row in sorted(shown, key=lambda row: row["label"].lower() in COLOURED):
            seeds = [{epoch: (cost / 60, robust) for epoch, cost, _, robust in curve} for curve in row["curves"]]
            shared = sorted(set.intersection(*map(set, seeds)))
            place = {epoch: statistics.fmean(seed[epoch][0] for seed in seeds) for epoch in shared}
            series = [{place[epoch]: seed[epoch][1] for epoch in shared} for seed in seeds]
            means = [(x, statistics.fmean(one[x] for one in series)) for x in place.values()]
            style = {"color": colour(row)}
            if colour(row) == GREY:  # without the band of its seeds
                style, series = {"color": LIGHT, "lw": 0.7}, [dict(means)]
            ends[row["label"]] = draw_mean(axes, series, **style)
            for (x, y), (next_x, next_y) in pairwise(means):
                drawn += [(x + part * (next_x - x), y + part * (next_y - y)) for part in (0, 0.25, 0.5, 0.75)]
        for line in axes.lines:
            line.set_clip_on(True)
        best = max(y for _, y in ends.values())
        drawn = [(x, y) for x, y in drawn if y >= best / 2]
        axes.set(ylim=(best / 2, 1.04 * best), xscale="log", xlim=(0.9 * min(x for x, _ in drawn), None))
        axes.set(xlabel=unit, ylabel=f"validation accuracy, {attack} (%)")
        _log_axis(axes)
        write_names(axes, ends, {row["label"]: colour(row) for row in rows}, drawn)


def _enough(axes: Any, rows: Sequence[Row], values: Sequence[float]) -> list[Row]:
    """The rows of at least half the best value; the others are named above the axes with theirs."""
    low = [f"{row['label']} {value:.1f}" for row, value in zip(rows, values, strict=True) if value < max(values) / 2]
    if low:
        axes.set_title(f"not shown: {', '.join(low)}", fontsize=LABEL, color=GREY, loc="left")
    return [row for row, value in zip(rows, values, strict=True) if value >= max(values) / 2]


def _log_axis(axes: Any) -> None:
    """On a logarithmic axis numbers in full, 0.5 or 20."""
    if axes.get_xscale() != "log":
        return
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def table_lines(collected: Mapping[str, Any], file: Path) -> list[str]:
    """The table in Markdown, and below it how it was measured."""
    measured, cost = collected["measured"], collected["cost"]
    dates = " to ".join(dict.fromkeys(day[:10] for day in measured["dates"]))
    return [
        table(collected),
        "",
        f"{dates}, {measured['cpu_model'] if cost == 'cpu_s' else measured['device_name']}, torch {measured['torch']}; "
        f"every figure and curve: `benchmarks/results/{file.name}`.",
    ]


def page(text: str, tables: Mapping[str, Sequence[str]]) -> str:
    """The page with the lines of each table between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    for name, lines in tables.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        if found:
            text = before + begin + "\n".join(["", *lines, "", ""]) + end + rest.partition(end)[2]
    return text


def main() -> None:
    """Draw the figures of each file, and write its table into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--attack", metavar="NAME", help="one of the table's")
    parser.add_argument("--out", type=Path, default=IMAGES, metavar="DIR", help="[docs/images]")
    args = parser.parse_args()
    for file in args.files:
        collected = json.loads(file.read_bytes())
        attack, cost = args.attack or ["pgd20", *collected["attacks"]][-1], collected["cost"]
        rows = [row for row in collected["rows"] if row["figures"][attack] is not None]
        students = [row for row in rows if not row["is_teacher"]]
        if args.out == IMAGES and f"{file.stem}_cost" not in RESULTS.read_text(encoding="utf-8"):
            continue  # the page has its table only
        minutes = [[seconds / 60 for seconds in row[cost]] for row in students]
        name = f"{args.out / file.stem}_{{}}.png"
        draw_points(Path(name.format("cost")), students, minutes, attack, xlabel=UNITS[cost], xscale="log")
        clean = [row["figures"]["clean"] for row in rows]
        draw_points(Path(name.format("tradeoff")), rows, clean, attack, xlabel="test accuracy, clean (%)")
        draw_curves(Path(name.format("curves")), students, f"PGD-{collected['val_steps']}", UNITS[cost])
        for what in ("cost", "tradeoff", "curves"):
            path = Path(name.format(what))
            picture = Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE)  # half the bytes
            picture.save(path, optimize=True)
            path.with_suffix(".pdf").unlink()
    if args.out == IMAGES:
        lines = {file.stem: table_lines(json.loads(file.read_bytes()), file) for file in args.files}
        write_text(RESULTS, page(RESULTS.read_text(encoding="utf-8"), lines))


if __name__ == "__main__":
    main()
