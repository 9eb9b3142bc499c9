"""What an evaluation prints and writes: the table of attacks, results.json and report.md."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from ard_fast._files import write_text
from ard_fast._progress import QUIET_SECONDS, Display, time_left
from ard_fast._tables import markdown_table
from ard_fast._version import __version__
from ard_fast.evaluation.evaluator import Evaluator, Listener
from ard_fast.evaluation.figures import worst_classes
from ard_fast.evaluation.results import CurvePoint, StageResult, Step, StepResult

_COLUMNS = (
    ("attack", 14),
    ("attacked", 8),
    ("robust %", 8),
    ("worst case %", 12),
    ("fwd/img", 8),
    ("bwd/img", 8),
    ("time s", 8),
)
_HEADER = [title for title, _ in _COLUMNS]
_WORST_CASE = "worst case %: share of all images classified correctly under every attack down to this line."
_EXPLAINED = (
    "attacked: images given to the attack; clean images that are misclassified count as wrong and are not attacked.",
    "robust %: share of all images classified correctly both clean and under this attack alone.",
    _WORST_CASE,
)
_EXPLAINED_CASCADE = (
    "attacked: images that no earlier attack fooled; the others are not attacked again (--cascade).",
    "robust %: only known for an attack that was given every correctly classified image.",
    _WORST_CASE,
)
_EXPLAINED_STAGES = (
    "Indented: stages of an ensemble; each attacks what earlier stages did not fool, and robust % is what remains "
    "after it."
)
_EXPLAINED_BF16 = (
    "agreement: the first batch of each attack, made in bf16 and in fp32, judged in fp32. redone: fooled in bf16 only, "
    "so attacked again in fp32."
)
_EXPLAINED_REUSED = "reused: the same attack was run above; its outcome is reused, and its cost counts there only."


def explain_columns(results: Sequence[StepResult], *, cascade: bool) -> list[str]:
    """What the columns of the table mean, a line each."""
    lines: list[str] = list(_EXPLAINED_CASCADE if cascade else _EXPLAINED)
    if any(len(result.stages) > 1 for result in results):
        lines.append(_EXPLAINED_STAGES)
    if any(stage.reused for result in results for stage in result.stages):
        lines.append(_EXPLAINED_REUSED)
    if any(stage.agreement for result in results for stage in result.stages):
        lines.append(_EXPLAINED_BF16)
    return lines


def _step_cells(result: StepResult) -> list[str]:
    reused = len(result.stages) == 1 and result.stages[0].reused
    robust = "-" if result.robust_acc is None else f"{result.robust_acc:.2f}"
    return [result.name, str(result.attacked), robust, f"{result.worst_case_acc:.2f}", *_cost_cells(result, reused)]


def _stage_cells(stage: StageResult, total: int) -> list[str]:
    left = f"{100.0 * stage.left / total:.2f}"
    return [f"  {stage.name}", str(stage.attacked), left, "", *_cost_cells(stage, stage.reused)]


def _agreement_text(stage: StageResult) -> str:
    return f"{stage.agreement}; {stage.redone} of {stage.attacked} redone in fp32"


def _cost_cells(result: StepResult | StageResult, reused: bool) -> list[str]:
    if reused:
        return ["", "", "reused"]
    cost, count = result.cost, max(result.attacked, 1)
    return [f"{cost.forward_images / count:.1f}", f"{cost.backward_images / count:.1f}", f"{cost.seconds:.1f}"]


def _all_cells(results: Sequence[StepResult]) -> list[list[str]]:
    """The whole table, an ensemble's stages above its own line."""
    lines = []
    for result in results:
        if len(result.stages) > 1:
            lines.extend(_stage_cells(stage, result.total) for stage in result.stages)
        lines.append(_step_cells(result))
    return lines


def _fixed_width(cells: Sequence[str], names: int) -> str:
    """A line of the printed table, whose column of names is that wide."""
    first, *rest = (
        cell.ljust(names) if index == 0 else cell.rjust(width)
        for index, (cell, (_, width)) in enumerate(zip(cells, _COLUMNS, strict=True))
    )
    return "  " + "  ".join([first, *rest]).rstrip()


# ---- while attacks run --------------------------------------------------------------------------------------------


class AttackProgress(Display, Listener):
    """Prints the table line by line; on a terminal a bar shows the attack under way, elsewhere a line now and then."""

    def __init__(self) -> None:
        super().__init__()
        self._name, self._count, self._batch = "", 0, 0
        self._forwards = self._begun = self._done = 0  # passes so far, and when this batch began; images so far
        self._of_batch: int | None = None  # passes of a batch
        self._started = self._last_line = 0.0
        self._names = _COLUMNS[0][1]

    def header(self, steps: Sequence[Step]) -> None:
        """Print the titles of a table of these attacks."""
        self._names = max([self._names, *(len(step.name) for step in steps)])
        self.say(_fixed_width(_HEADER, self._names))

    def stage_started(self, name: str, count: int, batch: int, passes: int | None) -> None:
        self.start_bar(count, label=f"  {name}")
        self._name, self._count, self._batch, self._of_batch = name, count, batch, passes
        self._begun, self._done = self._forwards, 0
        self._started = self._last_line = time.monotonic()

    def progress(self, forwards: int, done: int, left: int) -> None:
        if done > self._done:  # a batch is over; the next ones take as many passes
            self._of_batch, self._begun, self._done = forwards - self._begun, forwards, done
        self._forwards = forwards
        if not self._name or done == self._count:
            return
        passes, share = forwards - self._begun, 0.0
        note = f"pass {passes:,}"
        if self._of_batch:
            share = min(passes / self._of_batch, 1.0)
            note += f"/{max(self._of_batch, passes):,}"
        if done:
            note += f", {left} still right"
        shown, now = done + share * min(self._batch, self._count - done), time.monotonic()
        if self.show_on_bar(shown, note) or now - self._last_line < QUIET_SECONDS:
            return
        self._last_line = now
        left_over = time_left(now - self._started, shown / self._count)
        self.say(f"    {self._name}: {done:,}/{self._count:,} images, {note}, {left_over} left")

    def stage_done(self, result: StageResult, total: int) -> None:
        self.close()
        self.say(_fixed_width(_stage_cells(result, total), self._names))
        self._say_agreement(result)

    def step_done(self, result: StepResult) -> None:
        self.close()
        self.say(_fixed_width(_step_cells(result), self._names))
        if len(result.stages) == 1:
            self._say_agreement(result.stages[0])

    def _say_agreement(self, stage: StageResult) -> None:
        if stage.agreement is not None:
            self.say(f"    agreement: {_agreement_text(stage)}")

    def close(self) -> None:
        """Remove the bar; the present attack is over."""
        self._name = ""
        super().close()


# ---- files --------------------------------------------------------------------------------------------------------


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


@dataclass
class Outcome:
    """What an evaluation has found so far.

    Attributes:
        title: of report and plot.
        facts: what is evaluated and how, a line each.
        warnings: a line each; shown above the figures they concern.
        class_names: by label.
        curve: accuracy against eps, attacked by `curve_name`; empty for none.
        pictures: (caption, file name in the folder).
        export: of the adversarial images that were written.
        notes: lines at the end of the report, such as that the evaluation was stopped.
    """

    title: str
    facts: list[str]
    warnings: list[str]
    class_names: Sequence[str]
    curve: list[CurvePoint] = field(default_factory=list)
    curve_name: str = ""
    pictures: list[tuple[str, str]] = field(default_factory=list)
    export: dict[str, Any] | None = None
    notes: list[str] = field(default_factory=list)


def per_class(evaluator: Evaluator, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class that has images: accuracies in percent of its images, clean, worst case and by attack."""
    rows, labels = [], evaluator.split.labels.cpu()
    for label in labels.unique().tolist():
        mine = labels == label
        accuracy = {name: 100.0 * float(kept[mine].double().mean()) for name, kept in evaluator.robust.items()}
        clean, worst = (100.0 * float(kept[mine].double().mean()) for kept in (evaluator.right, evaluator.worst))
        row = {"class": class_names[label], "images": int(mine.sum()), "clean_acc": clean, "worst_case_acc": worst}
        rows.append({**row, "attacks": accuracy})
    return rows


def worst_class(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The accuracy of the worst class, in percent: clean, worst case and by attack; each may be of another class."""
    flat = [{"clean": row["clean_acc"], "worst_case": row["worst_case_acc"], **row["attacks"]} for row in rows]
    return {key: min(row[key] for row in flat) for key in flat[0]}


def _class_lines(evaluator: Evaluator, class_names: Sequence[str]) -> list[str]:
    """The part of the report on classes; of more classes than a figure shows only the worst."""
    rows = per_class(evaluator, class_names)
    shown, attacks = worst_classes(rows), list(evaluator.robust)
    header = ["class", "images", "clean %", *(f"{name} %" for name in attacks), "worst case %"]
    cells = []
    for row in shown:
        figures = (row["clean_acc"], *row["attacks"].values(), row["worst_case_acc"])
        cells.append([row["class"], str(row["images"]), *(f"{value:.2f}" for value in figures)])
    lowest = worst_class(rows)
    cells.append(["worst class", "", *(f"{lowest[name]:.2f}" for name in ("clean", *attacks, "worst_case"))])
    few = [f"The {len(shown)} worst of {len(rows)} classes; results.json has all.", ""] if shown != rows else []
    return ["## Accuracy by class", "", *few, markdown_table(header, cells), ""]


def write_results(
    folder: Path,
    about: Mapping[str, Any],
    evaluator: Evaluator,
    outcome: Outcome,
    *,
    planned: Sequence[Step],
    complete: bool,
) -> dict[str, Any]:
    """Write results.json, and return its content: accuracies in percent, times in seconds, eps with pixels in [0, 1].

    `about` is model, settings, images and versions; `planned` are the attacks of the whole evaluation.
    """
    results = evaluator.results
    points = [{**point._asdict(), "stage": asdict(point.stage)} for point in outcome.curve]
    content = {
        "complete": complete,
        "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        **about,
        "warnings": outcome.warnings,
        "clean_acc": results[0].robust_acc if results else None,
        "worst_case_acc": results[-1].worst_case_acc if results else None,
        "worst_class_acc": worst_class(per_class(evaluator, outcome.class_names)) if results else None,
        "attacks": [
            {
                **asdict(result),
                "robust_acc": result.robust_acc,
                "worst_case_acc": result.worst_case_acc,
                "cost": asdict(result.cost),
            }
            for result in results
        ],
        "unfinished_stages": [asdict(stage) for stage in evaluator.unfinished],
        "not_run": [step.name for step in planned if step.name not in {result.name for result in results}],
        "eps_curve": {"attack": outcome.curve_name, "points": points} if points else None,
        "per_class": per_class(evaluator, outcome.class_names) if results else None,
        "export": outcome.export,
    }
    write_text(folder / "results.json", json.dumps(content, indent=2) + "\n")
    return content


def write_report(folder: Path, evaluator: Evaluator, outcome: Outcome) -> None:
    """Write report.md: facts, warnings, the table with the parameters of its attacks, the curve, pictures and notes."""
    results = evaluator.results
    text = [f"# Robustness of {outcome.title}", "", *(f"- {fact}" for fact in outcome.facts), ""]
    if outcome.warnings:
        text += ["## Warnings", "", *(f"- {warning}" for warning in outcome.warnings), ""]
    indented = [[cells[0].replace("  ", "&nbsp;&nbsp;"), *cells[1:]] for cells in _all_cells(results)]
    explained = explain_columns(results, cascade=evaluator.cascade)
    text += ["## Attacks", "", markdown_table(_HEADER, indented), "", *(f"- {line}" for line in explained), ""]
    text += ["Parameters:", ""]
    for result in results:
        prefix = f"{result.name}: " if len(result.stages) > 1 else ""
        text += [f"- {prefix}{stage.name}: `{stage.parameters}`" for stage in result.stages]
    text.append("")
    agreements = [stage for result in results for stage in result.stages if stage.agreement]
    if agreements:
        text += ["## Agreement of bf16 and fp32", ""]
        text += [*(f"- {stage.name}: {_agreement_text(stage)}" for stage in agreements), ""]
    if outcome.curve:
        rows = [[f"{point.eps:.5g}", f"{point.robust_acc:.2f}"] for point in outcome.curve]
        source = f"By {outcome.curve_name}; an image fooled at a smaller eps counts as fooled at every larger one."
        text += ["## Accuracy against eps", "", source, "", markdown_table(["eps", "robust %"], rows), ""]
    if results:
        text += _class_lines(evaluator, outcome.class_names)
    for caption, name in outcome.pictures:
        text += [f"![{caption}]({name})", ""]
    text += [f"- {note}" for note in outcome.notes]
    write_text(folder / "report.md", "\n".join(text).rstrip() + "\n")
