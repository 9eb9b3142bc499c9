"""What an evaluation leaves behind: results.json, report.md, and the line of each attack in a table."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ard_fast._files import write_text
from ard_fast._version import __version__
from ard_fast.evaluation.curve import CurvePoint
from ard_fast.evaluation.runner import StageResult, Step, StepResult
from ard_fast.training.report import markdown_table

_COLUMNS = (
    ("attack", 14),
    ("attacked", 8),
    ("robust %", 8),
    ("worst case %", 12),
    ("fwd/img", 8),
    ("bwd/img", 8),
    ("time s", 8),
)
_EXPLAINED = (
    "attacked: images the attack was given; those that are wrong as they are count as wrong and are not attacked.",
    "robust %: share of all images right as they are and under this attack alone.",
    "worst case %: share of all images right under every attack down to this line.",
)
_EXPLAINED_CASCADE = (
    "attacked: images that every attack before left right; the others are not attacked again (--cascade).",
    "robust %: only known for an attack that was given every image right as it is.",
    "worst case %: share of all images right under every attack down to this line.",
)
_EXPLAINED_STAGES = (
    "Indented: stages of an ensemble; each attacks what the stages before left right, and robust % is what is left "
    "after it."
)


_EXPLAINED_REUSED = "reused: the same attack has been run above; its outcome is taken over, its cost counts there only."


def explain_columns(results: Sequence[StepResult], *, cascade: bool) -> list[str]:
    """What the columns of the table mean, a line each."""
    lines: list[str] = list(_EXPLAINED_CASCADE if cascade else _EXPLAINED)
    if any(len(result.stages) > 1 for result in results):
        lines.append(_EXPLAINED_STAGES)
    if any(stage.reused for result in results for stage in result.stages):
        lines.append(_EXPLAINED_REUSED)
    return lines


def header_cells() -> list[str]:
    """The titles of the table."""
    return [title for title, _ in _COLUMNS]


def step_cells(result: StepResult) -> list[str]:
    """A line of the table: an attack or an ensemble."""
    reused = len(result.stages) == 1 and result.stages[0].reused
    robust = "-" if result.robust_acc is None else f"{result.robust_acc:.2f}"
    return [result.name, str(result.attacked), robust, f"{result.worst_case_acc:.2f}", *_cost_cells(result, reused)]


def stage_cells(stage: StageResult, total: int) -> list[str]:
    """A line of the table: a stage of an ensemble."""
    left = f"{100.0 * stage.left / total:.2f}"
    return [f"  {stage.name}", str(stage.attacked), left, "", *_cost_cells(stage, stage.reused)]


def _cost_cells(result: StepResult | StageResult, reused: bool) -> list[str]:
    if reused:
        return ["", "", "reused"]
    cost, count = result.cost, max(result.attacked, 1)
    return [f"{cost.forward_images / count:.1f}", f"{cost.backward_images / count:.1f}", f"{cost.seconds:.1f}"]


def all_cells(results: Sequence[StepResult]) -> list[list[str]]:
    """The whole table, an ensemble's stages above its own line."""
    lines = []
    for result in results:
        if len(result.stages) > 1:
            lines.extend(stage_cells(stage, result.total) for stage in result.stages)
        lines.append(step_cells(result))
    return lines


def fixed_width(cells: Sequence[str]) -> str:
    """A line as it is printed."""
    first, *rest = (
        cell.ljust(width) if index == 0 else cell.rjust(width)
        for index, (cell, (_, width)) in enumerate(zip(cells, _COLUMNS, strict=True))
    )
    return "  " + "  ".join([first, *rest]).rstrip()


def versions(device: torch.device) -> dict[str, Any]:
    """What the figures were made with."""
    return {
        "ard_fast": __version__,
        "torch": torch.__version__,
        "pyautoattack": _version("pyautoattack"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cpu_threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def as_json(
    about: Mapping[str, Any],
    results: Sequence[StepResult],
    *,
    planned: Sequence[Step],
    warnings: Sequence[str],
    curve: Mapping[str, Any] | None,
    export: Mapping[str, Any] | None,
    unfinished: Sequence[StageResult],
    complete: bool,
) -> dict[str, Any]:
    """Everything, as written to results.json. Accuracies in percent, times in seconds, eps with pixels in [0, 1]."""
    return {
        "complete": complete,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **about,
        "warnings": list(warnings),
        "clean_acc": results[0].robust_acc if results else None,
        "worst_case_acc": results[-1].worst_case_acc if results else None,
        "attacks": [step_as_json(result) for result in results],
        "unfinished_stages": [asdict(stage) for stage in unfinished],
        "not_run": [step.name for step in planned if step.name not in {result.name for result in results}],
        "eps_curve": curve,
        "export": export,
    }


def step_as_json(result: StepResult) -> dict[str, Any]:
    """A line of the table with everything behind it."""
    return {
        **asdict(result),
        "robust_acc": result.robust_acc,
        "worst_case_acc": result.worst_case_acc,
        "cost": asdict(result.cost),
    }


def curve_as_json(name: str, points: Sequence[CurvePoint]) -> dict[str, Any] | None:
    """The curve over eps, or None."""
    if not points:
        return None
    return {
        "attack": name,
        "points": [
            {"eps": point.eps, "robust_acc": point.robust_acc, "stage": asdict(point.stage)} for point in points
        ],
    }


def write_results(folder: Path, content: Mapping[str, Any]) -> None:
    """results.json."""
    write_text(folder / "results.json", json.dumps(content, indent=2) + "\n")


def write_report(
    folder: Path,
    *,
    title: str,
    facts: Sequence[str],
    results: Sequence[StepResult],
    explained: Sequence[str],
    warnings: Sequence[str],
    curve: Sequence[CurvePoint],
    curve_name: str,
    pictures: Sequence[tuple[str, str]],
    notes: Sequence[str],
) -> None:
    """report.md.

    Args:
        folder: of the results.
        title: the heading.
        facts: what was evaluated and how, a line each.
        results: the table.
        explained: what its columns mean.
        warnings: shown above the figures they concern.
        curve: accuracy over eps; may be empty.
        curve_name: its attack.
        pictures: (caption, file name in the folder).
        notes: lines at the end, such as what was exported or that the evaluation was stopped.
    """
    text = [f"# {title}", "", *(f"- {fact}" for fact in facts), ""]
    if warnings:
        text += ["## Warnings", "", *(f"- {warning}" for warning in warnings), ""]
    indented = [[cells[0].replace("  ", "&nbsp;&nbsp;"), *cells[1:]] for cells in all_cells(results)]
    text += ["## Attacks", "", markdown_table(header_cells(), indented), "", *(f"- {line}" for line in explained), ""]
    text += ["Parameters:", ""]
    for result in results:
        prefix = f"{result.name}: " if len(result.stages) > 1 else ""
        text += [f"- {prefix}{stage.name}: `{stage.parameters}`" for stage in result.stages]
    text.append("")
    if curve:
        rows = [[f"{point.eps:.5g}", f"{point.robust_acc:.2f}"] for point in curve]
        text += ["## Accuracy over eps", "", f"By {curve_name}; an image fooled at a smaller eps counts as fooled at "
                 "every larger one.", "", markdown_table(["eps", "robust %"], rows), ""]  # fmt: skip
    for caption, name in pictures:
        text += [f"![{caption}]({name})", ""]
    text += [f"- {note}" for note in notes]
    write_text(folder / "report.md", "\n".join(text).rstrip() + "\n")
