"""The plan of a table (`train_table.py` says what it holds): from a YAML file to checked runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ard_fast._names import unknown
from ard_fast.evaluation.standard_attacks import make_plan, read_names
from ard_fast.methods.registry import find_method
from ard_fast.training.config import METHOD_FIELDS, PRESETS, TrainConfig, has_setting, load_yaml, parse, resolve
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.settings import ROLES

_KEYS = ("seeds", "attacks", "parts", "settings", "teachers", "rows")
_ENTRY_KEYS = ("preset", "seeds", "published")
_SAVE_SECONDS = 60.0  # most of a run that a kill may cost, unless the plan says otherwise


@dataclass(frozen=True)
class Run:
    """A network to train: its row, its folder, what it is trained with and the runs of its teachers."""

    row: str
    folder: RunFolder
    config: TrainConfig
    teachers: tuple[RunFolder, ...]

    def is_ready(self) -> bool:
        return all(teacher.summary() for teacher in self.teachers)


@dataclass(frozen=True)
class Plan:
    """A checked plan.

    Attributes:
        content: what the file holds.
        rows: teachers' names and rows' labels.
        runs: in the order of training.
        attacks: on the test images, besides clean accuracy; PGD-20 is part of every run.
        parts: of each evaluation.
    """

    content: Mapping[str, Any]
    rows: Sequence[str]
    runs: Sequence[Run]
    attacks: Sequence[str]
    parts: int

    def entry(self, row: str) -> Mapping[str, Any]:
        return self.content.get("teachers", {}).get(row) or self.content["rows"][row]


def read_plan(path: Path, out: Path, places: Mapping[str, Any]) -> Plan:
    """The plan of a file, every run of it checked.

    Args:
        path: of the YAML file.
        out: the table's folder.
        places: data_dir and device from the command line.

    Raises:
        FileNotFoundError, ValueError: names the file, the row and what is wrong.
    """
    content = load_yaml(path)
    for key in content:
        if key not in _KEYS:
            raise ValueError(f"{path}: {unknown('key', str(key), _KEYS)}")
    teachers, rows = (content.get(key, {}) for key in ("teachers", "rows"))
    for key, found in (("settings", content.get("settings", {})), ("teachers", teachers), ("rows", rows)):
        if not isinstance(found, dict) or (key != "settings" and not all(isinstance(v, dict) for v in found.values())):
            raise ValueError(f"{path}: {key}: expected `name: {{key: value, ...}}`, got {found!r}")
    entries = {**teachers, **rows}
    if not rows or len({slug(name) for name in entries}) < len(teachers) + len(rows):
        raise ValueError(f"{path}: rows: expected at least one, and names that differ in letters or digits")
    parts = content.get("parts", 1)
    if type(parts) is not int or parts < 1:
        raise ValueError(f"{path}: parts: expected a whole number of at least 1, got {parts!r}")
    attacks = [name for name in read_names(str(content.get("attacks", "pgd20"))) if name != "clean"]
    seeds = {
        name: _seeds(f"{path}: {name}", entry.get("seeds", content.get("seeds", [0])))
        for name, entry in entries.items()
    }
    runs = []
    for seed in sorted({seed for some in seeds.values() for seed in some}):
        for name, entry in entries.items():
            if seed not in seeds[name]:
                continue
            of_teachers = {
                teacher: RunFolder(out / _folder(teacher, seeds[teacher][0] if len(seeds[teacher]) == 1 else seed))
                for teacher in teachers
                if len(seeds[teacher]) == 1 or seed in seeds[teacher]
            }
            try:
                run = _run(
                    name, entry, content.get("settings", {}), seed, out, of_teachers if name in rows else {}, places
                )
                _check_published(entry.get("published", {}), attacks)
            except ValueError as error:
                raise ValueError(f"{path}: {name}: {error}") from error
            runs.append(run)
    first = runs[0].config
    make_plan(attacks, eps=first.eps, norm="linf", num_classes=10)  # FAB-T and Square need a package
    return Plan(content, list(entries), runs, attacks, parts)


def _run(
    name: str,
    entry: Mapping[str, Any],
    common: Mapping[str, Any],
    seed: int,
    out: Path,
    teachers: Mapping[str, RunFolder],
    places: Mapping[str, Any],
) -> Run:
    own = {key: value for key, value in entry.items() if key not in _ENTRY_KEYS}
    values, preset = parse({**common, **own}), entry.get("preset")
    method = values.get("method", PRESETS.get(str(preset), {}).get("method"))
    if preset is None and method is None:
        raise ValueError("expected a method or a preset, got neither")
    if method is not None:
        spec = find_method(method)
        without = {key for key in METHOD_FIELDS if not has_setting(spec, key)}
        if "steps" in without:  # a step size meant for several steps
            without.add("step_size")
        strange = [key for key in common if key not in own and key in without]
        strange += [role for role in ROLES if role not in spec.teachers and role not in own]
        values = {key: value for key, value in values.items() if key not in strange}
        for role in spec.teachers:
            source = str(values.get(role, "none"))
            if source in teachers:
                values[role] = str(teachers[source].path)
            elif not (":" in source or Path(source).exists()):
                raise ValueError(f"{unknown(role, source, teachers)} (trained for seed {seed}), or a file")
    config = resolve({"seed": seed, **places}, file={"save_every_seconds": _SAVE_SECONDS, **values}, preset=preset)
    if config.device == "cpu" and "threads" not in values:
        config = config.replace(threads=1)
    needed = tuple(folder for folder in teachers.values() if str(folder.path) in (config.teacher, config.clean_teacher))
    return Run(name, RunFolder(out / _folder(name, seed)), config, needed)


def _seeds(where: str, found: Any) -> list[int]:
    if not isinstance(found, list) or not found or any(type(seed) is not int or seed < 0 for seed in found):
        raise ValueError(f"{where}: seeds: expected a list of whole numbers such as [0, 1], got {found!r}")
    return found


def _check_published(found: Any, attacks: Sequence[str]) -> None:
    figures = ("clean", *attacks)
    for key, value in found.items() if isinstance(found, dict) else [("published", found)]:
        if key not in (*figures, "source"):
            raise ValueError(f"published: {unknown('key', str(key), (*figures, 'source'))}")
        if key != "source" and type(value) not in (int, float):
            raise ValueError(f"published: {key}: expected a percentage, got {value!r}")


def slug(label: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def _folder(label: str, seed: int) -> str:
    return f"seed{seed}-{slug(label)}"
