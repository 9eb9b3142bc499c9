"""Methods by name."""

from __future__ import annotations

from typing import Any, cast

from ard_fast._names import unknown
from ard_fast.methods import (
    absld,
    adaad,
    adaiad,
    ard,
    at,
    fair_ard,
    fast_ard,
    fgsm_ard,
    fgsm_rs,
    free,
    iad_i,
    iad_ii,
    igdm,
    kd,
    mart,
    mtard,
    n_fgsm,
    natural,
    rslad,
    saad,
    trades,
)
from ard_fast.methods.base import Method, MethodContext
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec

METHODS: dict[str, MethodSpec] = {
    "natural": natural.SPEC,
    "at": at.SPEC,
    "trades": trades.SPEC,
    "mart": mart.SPEC,
    "free": free.SPEC,
    "fgsm-rs": fgsm_rs.SPEC,
    "n-fgsm": n_fgsm.SPEC,
    "kd": kd.SPEC,
    "ard": ard.SPEC,
    "fast-ard": fast_ard.SPEC,
    "fgsm-ard": fgsm_ard.SPEC,
    "rslad": rslad.SPEC,
    "iad-i": iad_i.SPEC,
    "iad-ii": iad_ii.SPEC,
    "mtard": mtard.SPEC,
    "adaad": adaad.SPEC,
    "adaiad": adaiad.SPEC,
    "absld": absld.SPEC,
    "fair-ard": fair_ard.SPEC,
    "igdm": igdm.SPEC,
    "saad": saad.SPEC,
}


def find_method(name: str) -> MethodSpec:
    """The entry of a method.

    Raises:
        ValueError: no such method; the message has the nearest name.
    """
    if name not in METHODS:
        raise ValueError(unknown("method", name, METHODS))
    return METHODS[name]


def build_method(name: str, settings: Any, context: MethodContext) -> Method:
    """A method from settings that are complete: none of those it has is None (see `ard_fast.training.config.resolve`).

    Raises:
        ValueError: an unknown method, a missing teacher, or an incomplete setting.
    """
    spec = find_method(name)
    for role in spec.teachers:
        if role not in context.teachers:
            raise ValueError(f"{role}: method {name} needs one")
    for key in spec.defaults:
        if getattr(settings, key) is None:
            raise ValueError(f"{key}: method {name} needs a value, got None")
    return spec.build(cast("FilledSettings", settings), context)
