"""What the commands share: a parser that helps with misspelt flags, numbers such as 8/255, and the exit codes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from ard_fast._names import nearest

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


class Parser(argparse.ArgumentParser):
    """Says the nearest flag for one that does not exist."""

    def parse_args(  # pyright: ignore[reportIncompatibleMethodOverride] - only this one of its forms is used
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            near = nearest(extra[0].split("=")[0], self._option_string_actions)
            self.error(f"unknown argument {extra[0]!r}" + (f"; did you mean {near}?" if near else ""))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: error: {message}\n")


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
