"""The command `python -m ard_fast.methods`: the training methods, or all about one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ard_fast._commandline import EXIT_USAGE, Parser, program
from ard_fast.methods.base import Method
from ard_fast.methods.registry import EMA_RECIPE, METHODS, find_method, plain_method
from ard_fast.training.defaults import METHOD_ON_DATASET


def formula_and_source(summary: str) -> tuple[str, str]:
    """A summary without its name, and the paper that stands in brackets at its end."""
    text = summary.partition(": ")[2]
    formula, _, source = text.rpartition(" (") if text.endswith(")") else (text, "", "")
    # A formula may end in a bracket as well; a source has a year.
    return (formula, source[:-1]) if any(year in source for year in ("19", "20")) else (text, "-")


def facts(spec: type[Method]) -> Iterator[tuple[str, str]]:
    """What there is to know of a method, each with its label."""
    constants = spec.defaults()
    shown = {key: value for key, value in constants.items() if value or key.endswith("_weight")}  # not what is off
    yield "constants", _settings(shown)
    if spec.attacks:
        yield "step of the attack", f"{spec.step_ratio:g} eps"
    if spec.teachers:
        yield "needs", ", ".join("--" + role.replace("_", "-") for role in spec.teachers)
    if spec.networks:
        yield "trains beside the student", ", ".join("--" + role.replace("_", "-") for role in spec.networks)
    if spec.paper:
        yield f"--preset {spec.name}-paper", _settings(spec.paper)
    for quirk in spec.quirks:
        same = all(constants.get(key) == value for key, value in quirk.settings.items())
        yield "--parity", quirk.text + " (the default)" * same


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in values.items()) or "none"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (tuple, list)):
        return "/".join(_value(item) for item in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        "methods",
        description="List the training methods, or describe one: loss, constants, teachers, its paper's recipe and the "
        "quirks of the published code.",
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="method to describe; package.module:NAME for one of your own"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table or one method; 0, or 2 for wrong arguments."""
    name = vars(make_parser().parse_args(argv)).get("name")
    if name is None:
        rows = [("method", "what the student minimises", "source")]
        rows += [(name, *formula_and_source(spec.summary)) for name, spec in METHODS.items()]
        widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
        print("\n".join(f"{name:<{widths[0]}}  {text:<{widths[1]}}  {source}" for name, text, source in rows))
        print(
            "\nS student, T teacher, x clean image, x' attacked image, y label.", program("methods"), "NAME tells more."
        )
        print(f"Each also as NAME-ema, with {_settings(EMA_RECIPE)}.")
        return 0
    try:
        spec = find_method(name)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    recipe = [] if name == plain_method(name) else [f"{name}: {_settings(EMA_RECIPE)}"]
    if recipe and name in METHOD_ON_DATASET["digits"]:
        recipe.append(f"{name} on the digits: {_settings(METHOD_ON_DATASET['digits'][name])}")
    print("\n".join([spec.summary or name, *(f"{label}: {text}" for label, text in facts(spec)), *recipe]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
