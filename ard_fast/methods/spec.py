"""The entry of a method in the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ard_fast.methods.base import Method, MethodContext, Quirk
from ard_fast.methods.settings import FilledSettings


@dataclass(frozen=True)
class MethodSpec:
    """A method by name.

    Attributes:
        summary: one line: inner problem, outer loss, source.
        build: called with resolved settings.
        defaults: the settings it has, with the constants of its paper; fields of `MethodSettings`.
        teachers: the roles it needs, of "teacher" and "clean_teacher".
        attacks: whether it attacks the student.
        step_ratio: the step of its attack in units of eps.
        selects_by: the validation accuracy that makes an epoch the best: "robust" or "clean".
        whole_batch: whether each batch changes the method's state, or is used twice, so that it cannot come in parts.
        paper: the rest of its paper's training recipe on CIFAR-10, for the preset `<name>-paper`; fields of the run's
            configuration.
        quirks: what `parity` switches on.
    """

    summary: str
    build: Callable[[FilledSettings, MethodContext], Method]
    defaults: Mapping[str, Any]
    teachers: tuple[str, ...] = ()
    attacks: bool = True
    step_ratio: float = 0.25
    selects_by: str = "robust"
    whole_batch: bool = False
    paper: Mapping[str, Any] = field(default_factory=dict[str, Any])
    quirks: tuple[Quirk, ...] = ()
