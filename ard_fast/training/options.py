"""Fields of the configuration's dataclasses: a default, a help text, a heading, the allowed names."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(default: Any, help: str, group: str, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field that is also a command-line flag and a YAML key."""
    return field(default=default, metadata={"help": help, "group": group, "choices": choices})
