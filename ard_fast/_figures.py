"""What every figure shares: the sizes of a paper, fonts, colours, bands over seeds and the names of lines."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ard_fast._files import write_atomic

COLUMN, PAGE = 3.4, 7.0  # widths in a two-column paper, inches
GREY = "0.45"
# Okabe and Ito's colours, which colour-blind readers can tell apart, without the yellow that white paper swallows.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")  # colour and dash together tell 28 lines apart
_SMALL = 7  # points
_STYLE: Any = {
    "font.family": ["STIXGeneral", "DejaVu Sans"],  # like Times, and matplotlib brings it along
    "mathtext.fontset": "stix",
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": _SMALL,
    "ytick.labelsize": _SMALL,
    "legend.fontsize": _SMALL,
    "legend.frameon": False,
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.5,
    "ytick.major.width": 0.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.4,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "errorbar.capsize": 1.5,
    "pdf.fonttype": 42,  # TrueType: conferences refuse Type 3
}


@contextmanager
def figure(path: Path, width: float, height: float, *, rows: int = 1, columns: int = 1) -> Iterator[Any]:
    """Gives the axes `[rows, columns]`; when the block ends, the figure is written as PNG, to `path`, and as PDF.

    Args:
        path: of the PNG; the PDF has its name. Each is replaced in one step.
        width, height: inches.
    """
    import matplotlib  # slow to import
    from matplotlib.figure import Figure  # without pyplot no display and no global state is touched

    with matplotlib.rc_context(_STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        yield drawn.subplots(rows, columns, squeeze=False)
        for suffix in ("png", "pdf"):
            target = path.with_suffix(f".{suffix}")
            write_atomic(target, lambda part, suffix=suffix: drawn.savefig(part, format=suffix, dpi=200))
            drawn.set_layout_engine("none")  # settled, and slow to settle again


def look(place: int) -> dict[str, Any]:
    """Colour and dash of a figure's line number `place`."""
    return {"color": _COLOURS[place % len(_COLOURS)], "ls": _DASHES[place // len(_COLOURS) % len(_DASHES)]}


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def draw_mean(axes: Any, series: Sequence[Mapping[float, float]], **style: Any) -> tuple[float, float]:
    """The mean over the seeds where all have a value, and a band of one standard deviation; returns the line's end.

    Args:
        axes: to draw on.
        series: of each seed y by x; at least one x is in all of them.
        style: of the line, with its colour.
    """
    shared = sorted(set.intersection(*(set(one) for one in series)))
    points = [[one[x] for one in series] for x in shared]
    means, errors = [statistics.fmean(ys) for ys in points], [deviation(ys) for ys in points]
    axes.plot(shared, means, clip_on=False, **({"marker": "o"} if len(shared) == 1 else {}) | style)
    if len(series) > 1:
        low, high = ([mean + sign * error for mean, error in zip(means, errors, strict=True)] for sign in (-1, 1))
        axes.fill_between(shared, low, high, color=style["color"], alpha=0.18, lw=0)
    return shared[-1], means[-1]


def note_seeds(axes: Any, counts: Sequence[int]) -> None:
    """Say above the axes what a band or a bar of error is, where there is more than one seed."""
    few, many = min(counts), max(counts)
    if many > 1:
        seeds = f"{many}" if few == many else f"{few} to {many}"
        axes.set_title(f"mean ± sample standard deviation of {seeds} seeds", fontsize=_SMALL, color=GREY)


def name_lines(axes: Any, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> None:
    """Write each line's name right of the axes, at the height of its end, moved apart where they would overlap.

    To be called last: the axes keep their limits.

    Args:
        axes: with the lines.
        ends: the last point of each line by its name.
        colours: by the lines' names.
    """
    axes.figure.draw_without_rendering()  # settles the layout
    low, high = axes.get_ylim()
    gap = (high - low) * 1.25 * _SMALL / (axes.get_window_extent().height * 72 / axes.figure.dpi)
    order = sorted(ends, key=lambda name: ends[name][1])
    blocks: list[tuple[float, int]] = []  # of names that touch: mean height, less a gap for each name below; count
    for place, name in enumerate(order):
        blocks.append((ends[name][1] - place * gap, 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (upper, more), (lower, count) = blocks.pop(), blocks.pop()
            blocks.append(((upper * more + lower * count) / (more + count), more + count))
    most = max(low, high - (len(order) - 1) * gap)
    heights = [min(max(height, low), most) for height, count in blocks for _ in range(count)]
    for place, (name, height) in enumerate(zip(order, heights, strict=True)):
        axes.annotate(
            shorten(name),
            ends[name],
            (1.06, height + place * gap),
            textcoords=axes.get_yaxis_transform(),
            fontsize=_SMALL,
            va="center",
            color=colours[name],
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": colours[name], "relpos": (0, 0.5), "shrinkA": 1},
        )


def shorten(name: str, most: int = 32) -> str:
    """A name that leaves room for the figure: its beginning and its end."""
    return name if len(name) <= most else name[: most // 2] + "…" + name[1 + most // 2 - most :]


def eps_text(eps: float) -> str:
    """A radius as people write it: 8/255, or a decimal number."""
    levels = eps * 255
    return f"{round(levels)}/255" if 1 <= round(levels) <= 32 and abs(levels - round(levels)) < 1e-6 else f"{eps:.4g}"


def eps_axis(axes: Any, norm: str, eps: float) -> float:
    """Name the x axis of radii, in 1/255 where eps is a multiple of that, and mark eps; returns the axis's unit."""
    scale = 255.0 if eps_text(eps).endswith("/255") else 1.0
    ball = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$"}[norm]
    axes.set_xlabel(rf"{ball} radius $\epsilon$" + (" (1/255)" if scale > 1 else ", pixels in [0, 1]"))
    axes.axvline(eps * scale, color=GREY, lw=0.6, ls="--", zorder=0, label=rf"$\epsilon = {eps_text(eps)}$")
    return scale
