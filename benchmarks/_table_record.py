"""What a table (`train_table.py`) has come to: Markdown, and a JSON file for benchmarks/results."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from _table_plan import Plan
from _timing import environment

from ard_fast._files import write_text
from ard_fast._tables import markdown_table
from ard_fast.evaluation.figures import attack_title
from ard_fast.training.comparison import mean_sd
from ard_fast.training.finished import Group, read_run


def groups(plan: Plan) -> list[Group]:
    """The finished runs of each row that has some."""
    found: dict[str, list[Any]] = {row: [] for row in plan.rows}
    for run in plan.runs:
        finished = read_run(run.folder)
        if finished is not None:
            found[run.row].append(finished)
    return [Group(row, runs) for row, runs in found.items() if runs]


def cost(plan: Plan) -> str:
    """What training costs: the key of a metrics row. A shared processor's clock says little, a GPU's processor less."""
    return "cpu_s" if all(run.config.device == "cpu" for run in plan.runs) else "elapsed_s"


def seconds(group: Group, key: str) -> list[float]:
    """Of training and validation of each run."""
    return [run.folder.metrics()[-1][key] for run in group.runs]


def figures(plan: Plan, group: Group) -> dict[str, list[float] | None]:
    """Accuracies of each run in percent, clean and by attack; None unless all of them have been evaluated."""
    of_training = {"clean": group.values("clean_acc"), "pgd20": group.values("pgd20_acc")}
    return {**{name: group.attack(name) for name in plan.attacks}, **of_training}


def collect(plan: Plan) -> dict[str, Any]:
    """The figures of every trained run, and the settings that they share, as JSON has them."""
    rows = []
    for group in groups(plan):
        first = group.runs[0].config
        rows.append(
            {
                "label": group.label,
                "is_teacher": group.label in plan.content.get("teachers", {}),
                **{key: getattr(first, key) for key in ("method", "student", "epochs")},
                "settings": plan.entry(group.label),
                "seeds": group.seeds,
                **{key: _rounded(seconds(group, key)) for key in ("cpu_s", "elapsed_s")},
                "figures": {name: values and _rounded(values) for name, values in figures(plan, group).items()},
                # of each seed: epoch, seconds so far, validation accuracy clean and under PGD in percent
                "curves": [
                    [
                        [row["epoch"], *_rounded([row[cost(plan)], row["val_clean"], row["val_robust"]])]
                        for row in run.folder.metrics()
                        if row["val_robust"] is not None
                    ]
                    for run in group.runs
                ],
            }
        )
    return {
        "settings": plan.content.get("settings", {}),
        "attacks": plan.attacks,
        "val_steps": plan.runs[0].config.val_steps,
        "cost": cost(plan),
        "rows": rows,
    }


def table(collected: Mapping[str, Any]) -> str:
    """Markdown of what was collected: mean ± sample standard deviation over the seeds, published figures beside.

    Below it, where those are from: often another network or teacher.
    """
    rows, names = collected["rows"], ["clean", *collected["attacks"]]
    several = len({row["student"] for row in rows if not row["is_teacher"]}) > 1
    published = [row["settings"].get("published", {}) for row in rows]
    header = ["method", *["network"] * several, "seeds"]
    for name in names:
        title = name if name == "clean" else attack_title(name)
        header += [f"{title} %", *["published"] * any(name in one for one in published)]
    lines = []
    for row, known in zip(rows, published, strict=True):
        cells = [row["label"], *[row["student"]] * several, str(len(row["seeds"]))]
        for name in names:
            values = row["figures"][name]
            cells.append("-" if values is None else mean_sd(values))
            cells += [f"{known.get(name, '-')}"] * any(name in one for one in published)
        lines.append([*cells, f"{statistics.fmean(row[collected['cost']]) / 60:.1f}"])
    text = markdown_table([*header, "CPU minutes" if collected["cost"] == "cpu_s" else "minutes"], lines)
    sources = [
        f"{row['label']}: {known['source']}" for row, known in zip(rows, published, strict=True) if "source" in known
    ]
    return text + "\n\nPublished: " + "; ".join(sources) + "." if sources else text


def record(plan: Plan, path: Path, starts: Sequence[Mapping[str, str]], *, command: str, complete: bool) -> None:
    """Write what was collected as JSON, a line a row, and how it was measured.

    Args:
        plan: the table.
        path: the file.
        starts: date and commit of each process.
        command: that made them.
        complete: whether nothing is left to do.
    """
    about = environment(torch.device(plan.runs[0].config.device))
    measured = {key: about[key] for key in ("device_name", "cpu_model", "python", "torch", "cuda", "ard_fast")}
    measured["cores"] = os.cpu_count()
    measured["dates"] = [starts[0]["date"], about["date"]]
    measured["commits"] = list(dict.fromkeys(one["commit"] for one in starts))
    collected = collect(plan)
    lines = [json.dumps(row) for row in collected.pop("rows")]
    head = {"measured": measured, "command": command, "complete": complete, **collected}
    text = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in head.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "{" + text + ',\n"rows": [\n' + ",\n".join(lines) + "\n]}\n")


def _rounded(values: Sequence[float]) -> list[float]:
    return [round(value, 2) for value in values]
