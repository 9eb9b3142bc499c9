"""The folder of a run: which files it has, and how they are written and read."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

from ard_fast._commandline import Interrupted
from ard_fast._files import append_line, write_text
from ard_fast.training.checkpoint import BEST, CONFIG, LAST, STATE, DamagedRun, TrainingState, load_state
from ard_fast.training.config import PATHS, PLACES, TrainConfig, identity, is_path, read_yaml, to_yaml, validate
from ard_fast.training.settings import ROLES

_Kind = tuple[Callable[[Any], bool], str]  # a check, and what it lets through in words
TEXT: _Kind = (lambda value: isinstance(value, str), "text")
_TEXT_OR_NONE: _Kind = (lambda value: value is None or isinstance(value, str), "text or null")
_COUNT: _Kind = (lambda value: type(value) is int and 0 <= value < 2**63, "a whole number")
_AMOUNT: _Kind = (lambda value: type(value) in (int, float) and 0 <= value < 1e15, "a number of at least 0")
PERCENT: _Kind = (lambda value: type(value) in (int, float) and 0 <= value <= 100, "a percentage")
_PERCENT_OR_NONE: _Kind = (lambda value: value is None or PERCENT[0](value), "a percentage or null")

# A run's summary, in this order. Accuracies in percent, on the test split, of the best checkpoint.
_SUMMARY = {
    "method": TEXT,
    "dataset": TEXT,
    "student": TEXT,
    "teacher": _TEXT_OR_NONE,
    "seed": _COUNT,
    "epochs": _COUNT,
    "clean_acc": PERCENT,
    "pgd20_acc": PERCENT,
    "images_per_s": _AMOUNT,
    "elapsed_s": _AMOUNT,
}
SUMMARY_KEYS = (*_SUMMARY, "teachers", "graph", "warnings")  # the last three are for people: not read back
# Of a line of the metrics, what is read back.
_METRICS = {"epoch": _COUNT, "val_clean": _PERCENT_OR_NONE, "val_robust": _PERCENT_OR_NONE}


def check_record(record: Any, kinds: Mapping[str, _Kind]) -> None:
    """Refuse what is no JSON object, lacks one of the keys, or holds another kind of value there.

    Raises:
        ValueError: says which, what it should be and what it is.
    """
    if not isinstance(record, dict):
        raise ValueError("not an object")
    missing = [key for key in kinds if key not in record]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    for key, (good, wanted) in kinds.items():
        if not good(record[key]):
            raise ValueError(f"{key} must be {wanted}, got {shorten(ascii(record[key]), 80)}")


class RunFolder:
    """Paths and formats of one run's files. Nothing is created before `start`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_file = self.path / CONFIG
        self.places_file = self.path / "places.json"
        self.metrics_file = self.path / "metrics.jsonl"
        self.summary_file = self.path / "summary.json"
        self.report_file = self.path / "report.md"
        self.plot_file = self.path / "plot.png"
        self.pictures_file = self.path / "pictures.png"
        self.board = self.path / "tensorboard"
        self.best = self.path / BEST
        self.last = self.path / LAST
        self.state = self.path / STATE

    def start(self, config: TrainConfig) -> None:
        """Make the folder and write the configuration.

        Raises:
            FileExistsError: a run is there already.
        """
        if self.config_file.exists():
            raise FileExistsError(f"out: {self.path} already holds a run; choose another folder or use --resume")
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_config(config)

    @contextmanager
    def removed_if_nothing_was_trained(self, *, made: bool) -> Iterator[None]:
        """Where the inside fails before there is a checkpoint, leave no half-made folder behind.

        Args:
            made: whether the folder was made for this run. Any other stays, with what is in it.
        """
        try:
            yield
        except Exception as error:
            kept = (path for name in (BEST, LAST, STATE) for path in self.path.rglob(name))
            if made and not isinstance(error, Interrupted) and not any(kept):
                shutil.rmtree(self.path, ignore_errors=True)
            raise

    def write_config(self, config: TrainConfig) -> None:
        """Write the configuration, and from where its paths are to be read."""
        places = {"cwd": os.getcwd(), "folder": str(self.path.resolve())}
        write_text(self.places_file, json.dumps(places) + "\n")
        write_text(self.config_file, to_yaml(config))

    def found(self, config: TrainConfig) -> TrainConfig:
        """A configuration of this folder with its paths where they are now.

        Paths are tried as seen from the working directory of the run's start, then as they lay relative to the run's
        folder, which may have been moved along with them; one that is in neither place stays as it is.
        """
        try:
            places = json.loads(self.places_file.read_bytes())
            check_record(places, {"cwd": TEXT, "folder": TEXT})
        except (OSError, ValueError, RecursionError):
            return config
        changes: dict[str, str] = {}
        for name in PATHS:
            value = getattr(config, name)
            if not is_path(name, value):
                continue
            original = Path(places["cwd"]) / Path(value).expanduser()
            moved = self.path.resolve() / os.path.relpath(original, places["folder"])
            for path in (original, moved):
                if path.exists():
                    changes[name] = value if path == Path(value).expanduser().absolute() else os.path.normpath(path)
                    break
        return config.replace(**changes)

    def config(self, *, whole: bool = False) -> TrainConfig:
        """The configuration the run was started with.

        Args:
            whole: refuse a file that lacks keys, as one that was cut short does, and look at the methods, too.
        """
        if not self.config_file.is_file():
            raise FileNotFoundError(f"resume: {self.path} is not the folder of a run (no config.yaml)")
        values = read_yaml(self.config_file)
        missing = [name for name in TrainConfig.model_fields if name not in values]
        if whole and missing:
            names = shorten(", ".join(missing), 200)
            raise ValueError(f"config: {self.config_file} is cut short or of another version: it lacks {names}")
        config = TrainConfig(**values)
        validate(config, methods=whole)
        return config

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, the last one left out if it was cut short.

        Raises:
            DamagedRun: another line is damaged.
        """
        if not self.metrics_file.is_file():
            return []
        rows, lines = [], self.metrics_file.read_bytes().split(b"\n")
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                check_record(row, _METRICS)
                rows.append(row)
            except (ValueError, RecursionError) as error:
                if number < len(lines):  # what follows the last line feed was cut short, or is empty
                    raise DamagedRun(f"metrics: {self.metrics_file}, line {number}, is damaged: {error}") from error
        return rows

    def add_metrics(self, row: Mapping[str, Any]) -> None:
        """Append a line."""
        append_line(self.metrics_file, json.dumps(row))

    def rewrite_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace every line, in one step."""
        write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in rows))

    def summary(self) -> dict[str, Any] | None:
        """The summary of a finished run, or None.

        Raises:
            DamagedRun: damaged.
        """
        if not self.summary_file.is_file():
            return None
        try:
            summary = json.loads(self.summary_file.read_bytes())
            check_record(summary, _SUMMARY)
        except (ValueError, RecursionError) as error:
            raise DamagedRun(
                f"summary: {self.summary_file} is damaged: {error}. Without that file --resume makes it again"
            ) from error
        return summary

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write summary.json. Its presence says that the run is finished, so it comes last."""
        write_text(self.summary_file, json.dumps(summary, indent=2) + "\n")

    def check_inputs(self, before: Mapping[str, str], now: Mapping[str, str], config: TrainConfig) -> None:
        """Refuse to go on with other images or teachers than those of the run's start (`TrainingState.inputs`).

        Raises:
            DamagedRun: names the first that differs and its place.
        """
        for what, value in now.items():
            if before.get(what, value) != value:
                place = "extra_data" if what == "extra images" else "data_dir"
                name, kind = (what, "weights") if what in ROLES else (place, what)
                raise DamagedRun(
                    f"{name}: {getattr(config, name) or config.dataset} holds other {kind} than {self.path} was "
                    "started with"
                )

    def state_to_resume(self, config: TrainConfig, inputs: Mapping[str, str]) -> TrainingState | None:
        """The state to go on from, after which the metrics have been set; None before the first checkpoint.

        Raises:
            DamagedRun: the state is missing or damaged, or of another run, other images or another teacher.
        """
        if not self.state.is_file():  # stopped before its first checkpoint: from the start
            if self.last.is_file():
                raise DamagedRun(
                    f"resume: {self.state} is missing, without which the run cannot go on; its weights are in "
                    f"{self.last.name}"
                )
            self.rewrite_metrics([])
            return None
        state, values = load_state(self.state), identity(config)
        differing = [
            name
            for name, value in state.config.items()
            if name in values and name not in PLACES and values[name] != value
        ]
        if differing:
            raise DamagedRun(
                f"resume: config.yaml and {self.state} are not of the same run; they differ in {', '.join(differing)}"
            )
        self.check_inputs(state.inputs, inputs, config)
        self.rewrite_metrics(state.rows)
        return state
