"""Every operator by its handle, `torch.ops.ard_fast.*`, with the arguments that the tests have for its schema."""

from __future__ import annotations

import random
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from op_cases import CASES

from abuse.target import Arguments, Target


def _by_operator() -> dict[Any, list[Any]]:
    found = defaultdict(list)
    for case in CASES.values():
        found[case(torch.device("cpu"))[0]].append(case)
    return found


def _arguments(op: Any, cases: list[Any], rng: random.Random) -> Arguments:
    torch.manual_seed(rng.getrandbits(60))
    schema = op._schema.arguments
    values = rng.choice(cases)(torch.device("cpu"))[1]
    defaults = {item.name: item.default_value for item in schema if item.has_default_value()}
    return {**defaults, **dict(zip((item.name for item in schema), values, strict=False))}


# The operators name what their public functions call it, and of a list the layer.
_FOLD = {
    "tensors": ("weight", "bias", "gamma", "beta", "mean", "var", "layer"),
    "places": ("weight", "scale", "shift", "layer"),
    "eps": ("tensors", "places"),
    "weights": ("weight",),
    "affine": ("scale", "shift"),
}
# What must fit to what.
_FITS = {
    "x": ("eps", "sample_ids", "residual", "scale", "shift"),
    "grad": ("scale", "mask"),
    "images": ("ids", "positions"),
    "positions": ("views",),
    "padding": ("views",),
    "clean": ("labels", "with_teacher_grad"),
}


def targets() -> list[Target]:
    """All of them."""
    found = []
    for op, cases in _by_operator().items():
        name = op._schema.name.removeprefix("ard_fast::")
        aliases = {item.name: (item.name.removesuffix("_per_sample"),) for item in op._schema.arguments}
        aliases |= _FOLD if name == "fold_batch_norm_" else _FITS
        found.append(Target(f"torch.ops.ard_fast.{name}", op, partial(_arguments, op, cases), aliases))
    return found
