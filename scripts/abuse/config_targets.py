"""The configuration of a run: every field, as a flag's text and as what a YAML file may hold."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

from abuse.target import Arguments, Target
from ard_fast.training.config import TrainConfig, parse, resolve

_DEFAULTS = {item.name: item.default for item in dataclasses.fields(TrainConfig)}


def _resolve(**given: Any) -> TrainConfig:
    return resolve(parse(given))


def _some_fields(rng: random.Random) -> Arguments:
    names = rng.sample(sorted(_DEFAULTS), 3)
    given = {"method": "ard", "teacher": "resnet18", **{name: _DEFAULTS[name] for name in names}}
    return {**given, "method": "ard", "teacher": "resnet18"}


def targets() -> list[Target]:
    """The one."""
    aliases = {f"{role}_std": (f"{role}_mean",) for role in ("student", "teacher", "clean_teacher")}
    return [Target("config.resolve", _resolve, _some_fields, aliases, refuses=(ValueError,))]
