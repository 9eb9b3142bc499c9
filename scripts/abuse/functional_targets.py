"""Every public function of `ard_fast.functional` with the arguments that the tests have for it; the loss module."""

from __future__ import annotations

import inspect
import random
from collections import defaultdict
from functools import partial
from typing import Any

import torch
from op_cases import CALLS

from abuse.samples import BATCH, GRAD_DTYPES, grad_like, images, normal, size
from abuse.target import Arguments, Target
from ard_fast import functional as F
from ard_fast.losses import ARDLoss

Call = tuple[Any, tuple[Any, ...], dict[str, Any]]


def _arguments(calls: list[Call], rng: random.Random) -> Arguments:
    """One call's, all by name, defaults too; gradients and logits of any dtype, images in any layout."""
    function, positional, keywords = rng.choice(calls)
    parameters = inspect.signature(function).parameters
    defaults = {name: item.default for name, item in parameters.items() if item.default is not item.empty}
    given = defaults | dict(zip(parameters, positional, strict=False)) | keywords
    dtype, layout = rng.choice(GRAD_DTYPES), rng.choice((torch.contiguous_format, torch.channels_last))
    for name, value in given.items():
        if isinstance(value, torch.Tensor):
            wide = name == "grad" or name.endswith("logits") or (name == "target" and value.is_floating_point())
            value = value.to(dtype) if wide else value
            given[name] = value.clone(memory_format=layout if value.dim() == 4 and name != "images" else None)
    return given


def _windows(rng: random.Random) -> Arguments:
    return {"steps": rng.randint(1, 100), "first": 0.22, "decrement": 0.03, "minimum": 0.06}


def _run_apgd(grad: Any, loss_rows: Any, correct: Any, **settings: Any) -> F.APGDRun:
    run = F.APGDRun(**settings)
    for _ in range(2):
        run.step(grad, loss_rows, correct)
    return run.finish(loss_rows, correct)


def _apgd(rng: random.Random) -> Arguments:
    x = images(rng)
    return {
        "x": x,
        "start": x.clone(),
        "eps": size(rng, 0.1),
        "norm": rng.choice(("linf", "l2")),
        "steps": 2,
        "rho": 0.75,
        "momentum": 0.75,
        "bounds": (0.0, 1.0),
        "grad": grad_like(rng, x),
        "loss_rows": normal(rng, BATCH),
        "correct": torch.ones(BATCH, dtype=torch.bool),
    }


def _run_loss(student_adv_logits: Any, teacher_logits: Any, student_logits: Any, labels: Any, **settings: Any) -> Any:
    given = {"teacher_logits": teacher_logits, "student_logits": student_logits, "labels": labels}
    return ARDLoss(**settings)(student_adv_logits, **given)


def _loss_arguments(rng: random.Random) -> Arguments:
    given = _arguments(FUNCTIONAL["ard_loss"], rng)
    del given["weight"]
    return given


FUNCTIONAL = defaultdict(list)
for name, call in CALLS.items():
    FUNCTIONAL[name.split()[0]].append(call)
del FUNCTIONAL["APGDRun"]  # see _apgd

# What must fit to what: if the first is changed, the complaint may be of the others; and what operators call it.
_ALIASES = {
    "x": ("eps", "sample_ids", "residual", "scale", "shift", "x_adv"),
    "images": ("ids", "positions"),
    "positions": ("views",),
    "padding": ("views",),
    "grad": ("scale", "mask"),
    "target": ("labels", "teacher"),
    "logits": ("student", "teacher", "labels"),
    "loss": ("labels",),
    "student_logits": ("student", "clean"),
    "teacher_logits": ("teacher",),
    "student_adv_logits": ("student",),
    "adv_logits": ("adv",),
    "clean_logits": ("clean",),
}


def targets() -> list[Target]:
    """All of them."""
    found = [
        Target(f"functional.{name}", calls[0][0], partial(_arguments, calls), _ALIASES)
        for name, calls in FUNCTIONAL.items()
    ]
    found += [Target("functional.APGDRun", _run_apgd, _apgd, _ALIASES)]
    found += [Target("functional.checkpoint_windows", F.checkpoint_windows, _windows, _ALIASES)]
    return [*found, Target("losses.ARDLoss", _run_loss, _loss_arguments)]
