"""Phrases that several methods' conventions share."""

from __future__ import annotations

from typing import Protocol

from ard_fast.losses import divisor_words


class Distils(Protocol):
    """A method whose KL has a temperature and a reduction."""

    @property
    def temperature(self) -> float: ...
    @property
    def reduction(self) -> str: ...


def kl_words(method: Distils) -> str:
    """The temperature and the divisor of a method's KL."""
    return f"T={method.temperature:g}, KL divided by {divisor_words(method.reduction)}"
