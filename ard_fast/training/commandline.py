"""The flags of `python -m ard_fast.train` and their help, made from the fields of `TrainConfig`."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

from ard_fast._commandline import Parser, add_flags, choices, flag, program
from ard_fast.methods.registry import EMA_RECIPE, METHODS
from ard_fast.training.config import PLACES, TrainConfig
from ard_fast.training.defaults import DATASET_DEFAULTS, EVERY_METHOD, METHOD_ON_DATASET

_MOST_USED = (
    "method",
    "dataset",
    "data_dir",
    "download",
    "student",
    "teacher",
    "epochs",
    "batch_size",
    "lr",
    "ema",
    "eps",
    "seed",
    "device",
)
_EMA = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in EMA_RECIPE.items())
_FEW = 4  # methods named one by one
_MANY = 10  # names listed once, at --method


def make_parser() -> Parser:
    """The command line; every field of `TrainConfig` is a flag."""
    parser = Parser(
        "train",
        short=True,
        usage="%(prog)s [--method NAME] [--dataset NAME] [--out DIR] [flags]",
        description="Train a robust network: adversarial training or adversarially robust distillation. Without "
        "arguments: a comparison on scikit-learn's digits, 1 to 3 minutes on a laptop CPU.",
        epilog="In brackets: the default, and those of data sets and methods. Later settings win: defaults, the data "
        "set's defaults, --preset, --config, the other flags. A new --eps resets the step sizes, --epochs the "
        "milestones and the teacher's epochs (which are then as many), --optimiser the learning rates. "
        f"{program('methods')} describes the methods.",
    )
    parser.examples = (
        f"{parser.prog} --method ard --out runs/ard",
        f"{parser.prog} --preset rslad-paper --data-dir data --download --teacher wrn-34-10",
        f"{parser.prog} --resume runs/ard",
    )
    add = add_flags(parser, TrainConfig, _MOST_USED, _help).add_argument
    add("--out", metavar="DIR", help="folder of the run [runs/<dataset>-<method>-<time>]")
    add(
        "--preset",
        metavar="NAME",
        help="recipe: METHOD-paper (ard-paper), of its paper on CIFAR-10; METHOD-ema (at-ema), a stronger one for any "
        f"data set: {_EMA}",
    )
    add("--config", metavar="FILE", help="YAML file with any of these settings, such as a run's config.yaml")
    places = ", ".join(map(flag, PLACES))
    add("--resume", metavar="DIR", help=f"continue a stopped run exactly; only these flags may be given: {places}")
    add("--print-config", action="store_true", help="print the complete settings as YAML for --config and stop")
    return parser


def _help(name: str) -> str:
    field = TrainConfig.model_fields[name]
    names = choices(field)
    known = f" ({', '.join(names)})" if names and (name == "method" or len(names) < _MANY) else ""
    default = describe_default(name)
    return f"{field.description}{known}" + (f" [{default}]" if default else "")


def describe_default(name: str) -> str:
    """For example `200; digits: 15`, or `10; free: 7` for a setting whose default is the method's.

    Empty where nothing is set, or where the description tells the default.
    """
    field = TrainConfig.model_fields[name]
    of_methods = {method: spec.defaults()[name] for method, spec in METHODS.items() if name in spec.defaults()}
    parts = []
    for dataset, values in DATASET_DEFAULTS.items():
        tuned = METHOD_ON_DATASET.get(dataset, {})
        if name in values:
            parts.append(f"{dataset}: {show(values[name])}")
        elif name in tuned.get(EVERY_METHOD, {}):
            parts.append(f"{dataset}: {show(tuned[EVERY_METHOD][name])}")
    if field.default is None and of_methods:
        parts.insert(0, _of_methods(of_methods))
    elif field.default is not None or (parts and "default:" not in str(field.description)):
        parts.insert(0, show(field.default))
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
    """A value as it may be given on the command line, a fraction where a decimal would be rounded: 8/255."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if not isinstance(value, float):
        return str(value).lower()
    short = f"{value:.5g}"
    fraction = Fraction(value).limit_denominator(255)
    return short if float(short) == value or float(fraction) != value else str(fraction)
