"""The flags of `python -m ard_fast.train` and their help, made from the fields of `TrainConfig`."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

from ard_fast._commandline import FlagModel, Parser, choices, value_type
from ard_fast.methods.registry import METHODS
from ard_fast.training.config import PLACES, TrainConfig, flag
from ard_fast.training.defaults import DATASET_DEFAULTS, EVERY_METHOD, METHOD_ON_DATASET

_FIRST = ("method", "dataset", "data_dir", "student", "teacher", "epochs", "eps", "seed", "device")
_METAVARS: dict[type, str] = {int: "N", float: "X", bool: "BOOL", str: "NAME"}
_FEW = 4  # methods named one by one
_MANY = 10  # names listed once, at --method


def make_parser() -> Parser:
    """The command line; every field of `TrainConfig` is a flag."""
    parser = Parser(
        prog="python -m ard_fast.train",
        usage="%(prog)s [--method NAME] [--dataset NAME] [--out DIR] [any setting below]",
        description="Train small robust networks: adversarial training, robust distillation. Without arguments: a "
        "comparison on scikit-learn's digits, 1 to 3 minutes on a laptop CPU.",
        epilog="Later settings win: defaults, the data set's defaults, --preset, --config, the other flags. "
        "--eps alone takes the attacks' steps with it. In brackets: the default, and those of data sets and methods.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=28),
    )
    first = parser.add_argument_group("most used")
    for name in _FIRST:
        _add_flag(first, name)
    first.add_argument("--out", metavar="DIR", help="folder of the run [runs/<dataset>-<method>-<time>]")
    runs = parser.add_argument_group("presets, files, resuming")
    runs.add_argument("--preset", metavar="NAME", help="a paper's constants: METHOD-paper, such as ard-paper")
    runs.add_argument("--config", metavar="FILE", help="YAML with any of these settings, e.g. a run's config.yaml")
    places = ", ".join(map(flag, PLACES))
    runs.add_argument("--resume", metavar="DIR", help=f"go on with a stopped run, exactly; may change: {places}")
    runs.add_argument("--print-config", action="store_true", help="print the resolved YAML for --config and stop")
    groups: dict[type[FlagModel], Any] = {}
    for name in TrainConfig.model_fields:
        part = next(part for part in TrainConfig.__bases__ if name in part.model_fields)
        if part not in groups:
            groups[part] = parser.add_argument_group(part.group)
        if name not in _FIRST:
            _add_flag(groups[part], name)
    return parser


def _add_flag(group: Any, name: str) -> None:
    field = TrainConfig.model_fields[name]
    kind, is_list, _ = value_type(field)
    names = choices(field)
    known = f" ({', '.join(names)})" if names and (name == "method" or len(names) < _MANY) else ""
    text = f"{field.description}{known} [{describe_default(name)}]"
    # --flip alone means --flip true
    alone = {"nargs": "?", "const": "true"} if kind is bool or "true" in names else {}
    metavar = "LIST" if is_list else _METAVARS[kind]
    group.add_argument(flag(name), metavar=metavar, help=text.replace("%", "%%"), **alone)


def describe_default(name: str) -> str:
    """For example `200; digits: 15`, or `10; free: 7` for a setting whose default is the method's."""
    default = TrainConfig.model_fields[name].default
    of_methods = {method: spec.defaults()[name] for method, spec in METHODS.items() if name in spec.defaults()}
    parts = [_of_methods(of_methods)] if default is None and of_methods else [show(default)]
    for dataset, values in DATASET_DEFAULTS.items():
        tuned = METHOD_ON_DATASET.get(dataset, {})
        if name in values:
            parts.append(f"{dataset}: {show(values[name])}")
        elif name in tuned.get(EVERY_METHOD, {}):
            parts.append(f"{dataset}: {show(tuned[EVERY_METHOD][name])}")
    return "; ".join(parts)


def _of_methods(values: dict[str, Any]) -> str:
    """The commonest value, then the methods that differ; where few methods have it, all of them by name."""
    texts = {name: show(value) for name, value in values.items()}
    common, count = Counter(texts.values()).most_common(1)[0]
    named: dict[str, list[str]] = {}
    for name, text in texts.items():
        if len(texts) <= _FEW or text != common:
            named.setdefault(text, []).append(name)
    parts = [] if len(texts) <= _FEW else [f"{common} for {count} methods"]
    return "; ".join([*parts, *(f"{', '.join(names)}: {text}" for text, names in named.items())])


def show(value: Any) -> str:
    """A value as it may be given on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:.5g}" if isinstance(value, float) else str(value).lower()
