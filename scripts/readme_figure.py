"""The pictures of README and docs/numbers.md: `python scripts/readme_figure.py RUN`, RUN being a run on the digits.

docs/images/speedups.png shows ratios from benchmarks/results, docs/images/overview.png the same beside four test digits
under attack.
"""

import csv
import sys
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ard_fast import attacks
from ard_fast.data import load_dataset
from ard_fast.evaluation.loading import load_model

ROOT = Path(__file__).resolve().parents[1]
RESULTS, IMAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "images"
BLUE, ORANGE, RED, GREEN, GREY = "#1f6feb", "#e8873a", "#cf222e", "#1a7f37", "#57606a"

# label, file, case, the variant that is the published code, the variant that is torchattacks or F.kl_div
BARS = (
    (
        "ARD iteration: MobileNetV2,\nWRN-34-10 teacher (cached)",
        "train",
        "mobilenetv2-wrn",
        "published",
        "torchattacks",
    ),
    ("ARD iteration: ResNet-18,\nWRN-34-10 teacher (cached)", "train", "resnet18-wrn", "published", "torchattacks"),
    ("PGD-10 on MobileNetV2,\nbatch 16", "attack_loop", "mobilenetv2", "published", "torchattacks"),
    ("PGD step without the network,\n1024 CIFAR images", "pgd", "cifar-1024", "ard", "torchattacks"),
    ("distillation loss and gradient,\nlogits 4096 x 1000", "kd_loss", "c1000-4096", "ard", "kl_div"),
)
PICKED = ((3, True), (7, True), (5, False))  # label, still classified correctly


def ratio(file: str, case: str, variant: str) -> float:
    """How many times faster the fused variant is than this one, in fp32."""
    with (RESULTS / f"{file}_cpu.csv").open() as rows:
        wanted = {"case": case, "dtype": "fp32", "variant": variant}
        (row,) = (row for row in csv.DictReader(rows) if wanted.items() <= row.items())
    return float(row["fused_speedup"])


def draw_speedups(axes: Any) -> None:
    """Two bars for each benchmark."""
    for shift, column, colour, label in (
        (-0.2, 3, BLUE, "vs published code"),
        (0.2, 4, ORANGE, "vs torchattacks, F.kl_div"),
    ):
        values = [ratio(bar[1], bar[2], bar[column]) for bar in BARS]
        drawn = axes.barh([place + shift for place in range(len(BARS))], values, 0.36, color=colour, label=label)
        axes.bar_label(drawn, [f"{value:.1f}x" for value in values], padding=3, fontsize=9)
    axes.axvline(1, color="black", lw=0.8)
    axes.set_yticks(range(len(BARS)), [bar[0] for bar in BARS], fontsize=9)
    axes.set(xlim=(0, 6.3), ylim=(len(BARS) - 0.5, -0.6), xticks=[])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("Speed-up of ard-fast", fontsize=9)
    axes.legend(loc="center right", bbox_to_anchor=(1.06, 0.64), frameon=False, fontsize=9)
    axes.set_xlabel("AMD EPYC CPU, 2 threads, fp32, torch 2.13, 2026-11-22", fontsize=8, color=GREY, loc="right")


def draw_attack(axes: Any, run: Path) -> None:
    """Digits that the run's student classifies correctly under attack, and one that it does not."""
    digits = load_dataset("digits")
    student = load_model(run, None, digits).network
    x, y = digits.test.images.float() / digits.levels, digits.test.labels
    x_adv = attacks.PGD(eps=0.2, step_size=0.05, steps=20)(student, x, y, seed=0)
    with torch.no_grad():
        clean, found = student(x).argmax(1), student(x_adv).argmax(1)
    for column, (label, kept) in enumerate(PICKED):
        i = int(((y == label) & (clean == y) & ((found == y) == kept)).nonzero()[0])
        for row, image in enumerate((x[i, 0], 0.5 + 2.5 * (x_adv[i, 0] - x[i, 0]), x_adv[i, 0])):
            place = (9 * column, 9 * column + 8, 9 * row + 8, 9 * row)
            axes.imshow(image, cmap="gray", vmin=0, vmax=1, extent=place)
        text = f"{found[i]} {'✓' if kept else '✗'}"
        axes.text(9 * column + 4, 28, text, fontsize=10, ha="center", va="center", color=GREEN if kept else RED)
    axes.set_yticks([4, 13, 22, 28], ["clean", "perturbation", "attacked", "predicted"], fontsize=9)
    axes.set(xlim=(0, 26), ylim=(29, 0), xticks=[], anchor="NE")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title("PGD-20, ARD student, eps 0.2", fontsize=9)


if __name__ == "__main__":
    alone = Figure(figsize=(6.4, 3.3), layout="constrained")
    draw_speedups(alone.subplots())
    alone.savefig(IMAGES / "speedups.png", dpi=200)
    both = Figure(figsize=(8.3, 3.2), layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08))
    left, right = both.subplots(1, 2, width_ratios=[1.4, 1])
    draw_speedups(left)
    draw_attack(right, Path(sys.argv[1]))
    both.savefig(IMAGES / "overview.png", dpi=200)
