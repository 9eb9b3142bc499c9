"""What the commands share: exit codes, stopping, a parser that knows the nearest flag, models with fields as flags."""

from __future__ import annotations

import argparse
import reprlib
import signal
import sys
import threading
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import shorten, wrap
from types import FrameType, NoneType
from typing import Any, ClassVar, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from ard_fast._names import ALIASES, nearest, unknown

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

S = TypeVar("S", bound="FlagModel")
_WANTED: dict[type, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
_LISTS: dict[type, str] = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of names"}


class Interrupted(Exception):
    """Work stopped on request; the message says what is kept."""


class StopRequest:
    """A context in which the first SIGINT or SIGTERM sets `requested`; a second SIGINT interrupts at once.

    Outside the main thread, where Python allows no signal handlers, it does nothing. The former handlers come back at
    the end. `requested` may also be set by hand.
    """

    def __init__(self) -> None:
        self.requested = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True


def program(command: str) -> str:
    """What was typed to start a command: `ard-fast train`, `python -m ard_fast train` or `python -m ard_fast.train`."""
    started = Path(sys.argv[0])
    if started.stem == "ard-fast":
        return f"ard-fast {command}"
    return f"python -m ard_fast{' ' if started.parts[-2:] == ('ard_fast', '__main__.py') else '.'}{command}"


class _Formatter(argparse.HelpFormatter):
    """Breaks no line inside a name such as fgsm-ard, and leaves a text of several lines as it is."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=28, **settings)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrap(text, width, break_on_hyphens=False)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines = text.split("\n") if "\n" in text else wrap(text, width - len(indent), break_on_hyphens=False)
        return "\n".join(indent + line for line in lines)


class _Help(argparse.Action):
    """-h and --help show the flags used most, --help-all shows all of them."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        print(parser.format_help(everything=option_string == "--help-all"), end="")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """A parser for one command: takes no abbreviations, leaves out flags that are not given, knows other spellings.

    Args:
        command: its name.
        short: whether `--help` shows the first group of flags alone and `--help-all` the others too.
        settings: of `argparse.ArgumentParser`.

    Attributes:
        examples: lines of the help.
    """

    def __init__(self, command: str, *, short: bool = False, **settings: Any) -> None:
        super().__init__(
            prog=program(command),
            allow_abbrev=False,
            add_help=False,
            argument_default=argparse.SUPPRESS,
            formatter_class=_Formatter,
            **settings,
        )
        self.examples: tuple[str, ...] = ()
        self._short = short
        add = self.add_argument
        add("-h", "--help", action=_Help, nargs=0, help="show the flags used most" if short else "show this help")
        if short:
            add("--help-all", action=_Help, nargs=0, help="show all flags")

    def format_help(self, *, everything: bool = True) -> str:
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        positional, options, *groups = self._action_groups
        for group in (positional, *(groups if everything else groups[:1]), options):
            formatter.start_section(group.title)
            formatter.add_arguments(group._group_actions)
            formatter.end_section()
        if self.examples:
            formatter.start_section("examples")
            formatter.add_text("\n".join(self.examples))
            formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride] - only this one of its forms is used
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        args = [self._spelt(text) for text in (sys.argv[1:] if args is None else args)]
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            is_flag = extra[0].startswith("-")
            others = [str(action.metavar) for action in self._get_positional_actions()] if is_flag else []
            near = nearest(extra[0].split("=")[0], [*self._option_string_actions, *others])
            hint = f"; did you mean {near}?" if near else "; --help-all shows all flags" if self._short else ""
            self.error(f"{'unknown' if is_flag else 'unexpected'} argument {extra[0]!r}{hint}")
        return parsed

    def _spelt(self, text: str) -> str:
        """An argument with the flag's own name for one of `ALIASES`, or with underscores."""
        name, equals, value = text.partition("=")
        known = self._option_string_actions
        if not name.startswith("--") or name in known:
            return text
        dashed = name.replace("_", "-")
        names = (dashed, *(f"--{other}" for other in ALIASES.get(dashed[2:], ())))
        return next((other for other in names if other in known), name) + equals + value

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


_METAVARS: dict[type, str] = {int: "INT", float: "FLOAT", bool: "BOOL", str: "NAME"}


def add_flags(parser: Parser, model: type[FlagModel], most_used: Sequence[str], help: Callable[[str], str]) -> Any:
    """The fields of a model as flags, but for those that the parser already has.

    Args:
        parser: of the command.
        model: its bases are the groups of flags.
        most_used: fields, of a group of their own in front, which is returned.
        help: gives the help of a field.
    """
    own = {action.dest for action in parser._actions}
    first = parser.add_argument_group("most used")
    for name in most_used:
        _add_flag(first, name, model.model_fields[name], help(name))
    for part in reversed(model.__bases__):
        group = parser.add_argument_group(part.group)
        for name, field in part.model_fields.items():
            if name not in own and name not in most_used:
                _add_flag(group, name, field, help(name))
    return first


def _add_flag(group: Any, name: str, field: FieldInfo, help: str) -> None:
    kind, is_list, _ = value_type(field)
    help = help.replace("%", "%%")
    if field.annotation is bool and field.default is None:  # one that can only be switched on
        group.add_argument(flag(name), action="store_true", help=help)
        return
    # --flip alone means --flip true
    alone = {"nargs": "?", "const": "true"} if kind is bool or "true" in choices(field) else {}
    metavar = extra(field).get("metavar") or ("LIST" if is_list else _METAVARS[kind])
    group.add_argument(flag(name), metavar=metavar, help=help, **alone)


def flag(name: str) -> str:
    """The command-line flag of a field: `data_dir` -> `--data-dir`."""
    return "--" + name.replace("_", "-")


def number(text: str) -> float:
    """A number, which may be written as a fraction such as 8/255.

    Raises:
        ValueError: anything else.
    """
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"expected a number such as 8/255 or 0.03, got {text!r}") from None


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    also: tuple[str, ...] = (),
    own: str = "",
    unit: str = "",
    metavar: str | None = None,
    **limits: Any,
) -> Any:
    """A field.

    Args:
        default: None stands for what the method, the data set or another field says.
        help: its line in `--help`.
        choices: the names that it takes, or that it takes a list of; empty for any.
        also: names that it takes too, which lists of the choices leave out.
        own: what it takes besides, of the form that this names: any text with a colon.
        unit: what its numbers are, for the error when one is out of range.
        metavar: what stands for its value in `--help`; by default its type.
        limits: ge, gt, le, lt or min_length, as pydantic's.
    """
    extra: Any = {"choices": list(choices), "also": list(also), "own": own, "unit": unit, "metavar": metavar}
    return Field(default, description=help, json_schema_extra=extra, **limits)


class FlagModel(BaseModel):
    """Base of the groups below; pydantic checks types, ranges and names when one is made.

    Numbers may be given as text and as fractions (8/255), lists with commas (3,5), None as `none`, truth as true or
    false. A broken number is never cut to a whole one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    group: ClassVar[str] = ""

    @field_validator("*", mode="before")
    @classmethod
    def _read(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        kind, is_list, may_be_none = value_type(field)
        if value is None or (value == "none" and may_be_none):
            return None
        if is_list:
            parts = [part for part in value.split(",") if part] if isinstance(value, str) else value
            return [_read_one(part, kind) for part in parts] if isinstance(parts, (list, tuple)) else parts
        if isinstance(value, bool) and "true" in choices(field):
            return str(value).lower()
        return _read_one(value, kind)

    @field_validator("*")
    @classmethod
    def _check_name(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[str(info.field_name)]
        names, also, own = choices(field), extra(field).get("also", ()), extra(field).get("own")
        for part in value if isinstance(value, tuple) else (value,):
            if names and part is not None and part not in (*names, *also) and not (own and ":" in part):
                raise ValueError(unknown("value", part, names, also) + (f", {own}" if own else ""))
        return value


def choices(field: FieldInfo) -> tuple[str, ...]:
    """The names that a field takes; empty where it takes others."""
    return tuple(extra(field).get("choices", ()))


def value_type(field: FieldInfo) -> tuple[type, bool, bool]:
    """The type of a field's value or of its parts, whether it is a list, and whether it may be None."""
    kind: Any = field.annotation
    may_be_none = NoneType in typing.get_args(kind)
    if may_be_none:
        kind = typing.get_args(kind)[0]
    is_list = typing.get_origin(kind) is tuple
    return (typing.get_args(kind)[0] if is_list else kind), is_list, may_be_none


def checked(kind: type[S], values: Mapping[Any, Any], source: str | None = None) -> S:
    """A model of settings from values of some of its fields; pydantic's errors become one line.

    Args:
        kind: the model.
        values: texts of flags, what a YAML file holds, or values of the fields' own types.
        source: named in errors.

    Raises:
        ValueError: an unknown key (with the nearest known one), or a value of the wrong type, name or range.
    """
    values = {str(key): value for key, value in values.items()}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        text = _one_line(kind, values, error)
    raise ValueError(f"{source}: {text}" if source else text)


def _one_line(kind: type[FlagModel], values: Mapping[str, Any], error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name, what = str(first["loc"][0]), first["type"]
    if what == "extra_forbidden":
        near = nearest(name, kind.model_fields)  # all of them would be too many
        hint = f"did you mean {near!r}?" if near else "the keys are the flags that --help-all shows"
        return f"unknown key {shorten(name, 80)!r}; {hint}"
    if what == "value_error":
        return f"{name}: {first.get('ctx', {}).get('error')}"
    field = kind.model_fields[name]
    if what == "finite_number":
        return f"{name}: expected a finite number, got {first['input']}"
    if what.startswith(("greater_than", "less_than")):
        unit = extra(field).get("unit")
        return f"{name}: expected {_range(field)}{f', {unit}' if unit else ''}, got {first['input']!r}"
    of, is_list, _ = value_type(field)
    return f"{name}: expected {(_LISTS if is_list else _WANTED)[of]}, got {reprlib.repr(values[name])}"


def _range(field: FieldInfo) -> str:
    """For example `at least 1`, or `0 to below 1`."""
    limits = {
        key: getattr(item, key) for item in field.metadata for key in ("ge", "gt", "le", "lt") if hasattr(item, key)
    }
    if "le" not in limits and "lt" not in limits:
        return f"at least {limits['ge']}" if "ge" in limits else f"more than {limits['gt']}"
    first = limits["ge"] if "ge" in limits else f"more than {limits['gt']}"
    return f"{first} to {limits['le']}" if "le" in limits else f"{first} to below {limits['lt']}"


def extra(field: FieldInfo) -> dict[str, Any]:
    """What a field says of itself beside pydantic's own: choices, unit, metavar."""
    return typing.cast("dict[str, Any]", field.json_schema_extra or {})


def _read_one(value: Any, kind: type) -> Any:
    """What pydantic is to look at: it alone would take true for 1, 1 for true and 3.0 for 3."""
    no_truth = kind is bool and not isinstance(value, (bool, str))
    if no_truth or (kind is not bool and isinstance(value, bool)) or (kind is int and isinstance(value, float)):
        raise PydanticCustomError("wrong_type", "of another type")
    if kind is float and isinstance(value, str):
        return number(value)
    return int(value) if kind is int and isinstance(value, str) and value.strip("- ").isdecimal() else value
