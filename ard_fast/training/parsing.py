"""From the texts of flags and the values of YAML to the types of a dataclass's fields, by pydantic."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Mapping
from textwrap import shorten
from types import UnionType
from typing import Annotated, Any

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from ard_fast._names import unknown


def parser(dataclass: type) -> Callable[[Mapping[str, Any], str | None], dict[str, Any]]:
    """A function that types a mapping with some of a dataclass's fields.

    Numbers may be written as fractions (8/255), lists with commas (3,5), nothing as `none`, truth as true or false;
    whole numbers are never cut from broken ones.

    Args:
        dataclass: its fields are bool, int, float, str, `tuple[one of these, ...]`, or any of those or None. Texts with
            "true" among their choices (`option`) may be given as truth too.

    Returns:
        f(mapping, source), which raises ValueError: `source: unknown key ...` or `field: expected ..., got ...`.
    """
    hints = typing.get_type_hints(dataclass)
    switches = {item.name for item in dataclasses.fields(dataclass) if "true" in (item.metadata.get("choices") or ())}
    readers = {name: _SWITCH if name in switches else _reader(kind) for name, kind in hints.items()}
    schema: Any = TypedDict("schema", readers, total=False)  # pyright: ignore[reportArgumentType] - made at run time
    adapter = TypeAdapter(with_config(ConfigDict(extra="forbid"))(schema))

    def parse(mapping: Mapping[str, Any], source: str | None = None) -> dict[str, Any]:
        where = f"{source}: " if source else ""
        try:
            return adapter.validate_python({str(key): value for key, value in mapping.items()})
        except ValidationError as error:
            first = error.errors(include_url=False, include_context=False)[0]
            name = str(first["loc"][0])
            if first["type"] == "extra_forbidden":
                raise ValueError(where + unknown("key", shorten(name, 80), hints)) from None
            wanted = _wanted(_without_none(hints[name]))
            got = shorten(repr(mapping[name]), 120)
            raise ValueError(f"{where}{name}: expected {wanted}, got {got}") from None

    return parse


def _without_none(kind: Any) -> Any:
    if isinstance(kind, UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def _wanted(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        names = {int: "whole numbers", float: "numbers", str: "names"}
        return f"a list of {names[typing.get_args(kind)[0]]}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]


def _reader(kind: Any) -> Any:
    """The type for pydantic, with what it is to accept beyond the type itself."""
    if isinstance(kind, UnionType):
        return Annotated[_reader(_without_none(kind)) | None, BeforeValidator(_nothing)]
    if typing.get_origin(kind) is tuple:
        return Annotated[tuple[_reader(typing.get_args(kind)[0]), ...], BeforeValidator(_parts)]
    return Annotated[kind, BeforeValidator({int: _whole, float: _fraction, bool: _truth, str: _same}[kind])]


def _nothing(value: Any) -> Any:
    return None if value == "none" else value


def _parts(value: Any) -> Any:
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


def _whole(value: Any) -> Any:
    if isinstance(value, (bool, float)):
        raise ValueError("not a whole number")
    return value


def _fraction(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("not a number")
    if isinstance(value, str) and value.count("/") == 1:
        numerator, denominator = map(float, value.split("/"))
        if not denominator:
            raise ValueError("division by zero")
        return numerator / denominator
    return value


def _truth(value: Any) -> Any:
    if not isinstance(value, (bool, str)):
        raise ValueError("neither true nor false")
    return value


def _same(value: Any) -> Any:
    return value


def _named_truth(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else value


_SWITCH = Annotated[str, BeforeValidator(_named_truth)]
