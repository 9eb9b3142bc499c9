#!/usr/bin/env python3
"""Writes docs/methods.md: every method with its formula, constants and quirks, from the registry, and what each reaches
on the digits, from benchmarks/results/methods_digits.json.

    python scripts/methods_page.py                            the page, from what is recorded
    python scripts/methods_page.py --record DIR/compare.json  record the figures of `python -m ard_fast.compare` first
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from _timing import cpu_model  # noqa: E402

from ard_fast._files import write_text  # noqa: E402
from ard_fast.methods import METHODS, Method  # noqa: E402
from ard_fast.training.comparison import mean_sd  # noqa: E402
from ard_fast.training.report import markdown_table  # noqa: E402

PAGE = ROOT / "docs" / "methods.md"
RECORD = ROOT / "benchmarks" / "results" / "methods_digits.json"

_INTRO = """# Methods

This page is written by `python scripts/methods_page.py`; edit the methods, not the page.

S is the student, T the teacher, T' a second one trained on clean images, x the clean image, x' the attacked
one, y the label. KL(a || b) has the reference distribution a first. Pixels, eps and steps are in [0, 1].
`python -m ard_fast.train --method NAME` trains with the constants below (tuned ones on the digits);
`--preset NAME-paper` takes the paper's training recipe for CIFAR-10 as well; `--parity` switches on the listed quirks
of the published code and prints them.
"""


def record(source: Path) -> None:
    """Keep the figures of a comparison's JSON and where they were measured, without times and a machine's folders."""
    content = json.loads(source.read_text(encoding="utf-8"))
    left_out = {"folders", "elapsed_s", "images_per_s"}
    groups = [{key: value for key, value in group.items() if key not in left_out} for group in content["groups"]]
    for group in groups:
        group["teacher"] = group["teacher"] and Path(group["teacher"]).name
    measured = {
        "date": f"{date.today():%Y-%m-%d}",
        "processor": cpu_model(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    lines = ",\n".join(json.dumps(group) for group in groups)  # a line a group
    head = f'"measured": {json.dumps(measured)},\n"note": {json.dumps(content["note"])},\n'
    write_text(RECORD, f'{{{head}"groups": [\n{lines}\n]}}\n')


def page() -> str:
    """The page's text."""
    parts = [_INTRO, *_overview(), *_figures()]
    parts += ["## Each method", *(_section(name, spec) for name, spec in METHODS.items())]
    return "\n".join(parts)


def _overview() -> list[str]:
    """One line a method: what it minimises, what it needs, where it comes from."""
    rows = []
    for name, spec in METHODS.items():
        formula, source = _formula_and_source(spec.summary)
        teachers = ", ".join(role.replace("_", " ") for role in spec.teachers)
        rows.append([f"[{name}](#{name})", formula.replace("|", "\\|"), teachers or "-", source])
    table = markdown_table(["method", "what it is", "needs", "source"], rows)
    return ["## All of them", "", table.replace("-:|", "--|"), ""]  # words: not aligned to the right


def _formula_and_source(summary: str) -> tuple[str, str]:
    """A summary without its name, and the paper that stands in brackets at its end."""
    text = summary.partition(": ")[2]
    formula, _, source = text.rpartition(" (") if text.endswith(")") else (text, "", "")
    # A formula may end in a bracket as well; a source has a year.
    return (formula, source[:-1]) if any(year in source for year in ("19", "20")) else (text, "-")


def _figures() -> list[str]:
    if not RECORD.is_file():
        return []
    content = json.loads(RECORD.read_text(encoding="utf-8"))
    measured, order = content["measured"], list(METHODS)
    # The teachers, then the students in the order of the sections below.
    groups = sorted(
        content["groups"],
        key=lambda group: (" " not in group["label"].split("(")[0].strip(), order.index(group["method"])),
    )
    reference = next(group for group in groups if group["method"] == "at" and group["student"] == "digits-student")
    rows = []
    for group in groups:
        gaps = [a - b for a, b in zip(group["pgd20_acc"], reference["pgd20_acc"], strict=True)]
        apgd = group["attacks"].get("apgd-ce")
        rows.append(
            [
                group["label"],
                mean_sd(group["clean_acc"]),
                mean_sd(group["pgd20_acc"]),
                "-" if apgd is None else mean_sd(apgd),
                "-" if group is reference else f"{round(statistics.fmean(gaps), 2) + 0.0:+.2f}",
            ]
        )
    headers = ["method (network)", "clean %", "PGD-20 %", "APGD-CE %", "PGD-20 - at, points"]
    table = markdown_table(headers, rows)
    return [
        "## On the digits",
        "",
        f"{content['note']} Measured {measured['date']} on {measured['processor']}, one thread a run, torch "
        f"{measured['torch']}. The students have 4,258 parameters, the teachers 23,034. The same 15 epochs for all, "
        "batch repeats counted; learning rates and temperatures chosen on the validation images (benchmarks/NOTES.md "
        "has what was tried). With 450 test images one figure's standard error is 2 points, so most of the differences "
        "between the members of the family are noise. Commands: `python -m ard_fast.train --compare-methods "
        "NAME,NAME,...`, then `python -m ard_fast.compare RUN --attacks apgd-ce --baseline at --out DIR`.",
        "",
        table,
        "",
    ]


def _section(name: str, spec: type[Method]) -> str:
    lines = ["", f"### {name}", "", f"{spec.summary}.", ""]
    lines.append(f"- constants: {_settings(spec.defaults())}")
    if spec.attacks:
        lines.append(f"- step of the attack: {spec.step_ratio:g} eps")
    if spec.teachers:
        lines.append(f"- needs: {', '.join('--' + role.replace('_', '-') for role in spec.teachers)}")
    if spec.paper:
        lines.append(f"- `--preset {name}-paper`: {_settings(spec.paper)}")
    lines += [f"- `--parity`: {quirk.text}" for quirk in spec.quirks]
    return "\n".join(lines)


def _settings(values: Any) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in values.items()) or "none"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return "/".join(_value(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, metavar="FILE", help="compare.json of the methods on the digits")
    arguments = parser.parse_args()
    if arguments.record:
        record(arguments.record)
    PAGE.parent.mkdir(exist_ok=True)
    write_text(PAGE, page() + "\n")


if __name__ == "__main__":
    main()
