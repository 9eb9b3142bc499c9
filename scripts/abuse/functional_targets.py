"""Every public function of `ard_fast.functional`, and the loss module over them."""

from __future__ import annotations

import random
from typing import Any

import torch

from abuse.samples import BATCH, CLASSES, grad_like, images, labels, maybe, normal, size
from abuse.target import Arguments, Target
from ard_fast import functional as F
from ard_fast.losses import ARDLoss

REDUCTIONS = ("none", "sum", "batchmean", "mean")


def _step(rng: random.Random) -> Arguments:
    x = images(rng)
    return {
        "x_adv": x.clone(),
        "grad": grad_like(rng, x),
        "x": x,
        "step_size": size(rng, 0.1),
        "eps": size(rng, 0.2),
        "targeted": rng.random() < 0.5,
        "bounds": (0.0, 1.0),
    }


def _mifgsm(rng: random.Random) -> Arguments:
    step = _step(rng)
    return {**step, "momentum": torch.zeros_like(step["x"]), "decay": 0.9}


def _start(rng: random.Random) -> Arguments:
    return {
        "x": images(rng),
        "eps": size(rng, 0.1),
        "norm": rng.choice(("linf", "l2")),
        "init": rng.choice(("uniform", "normal", "surface")),
        "std": 0.001,
        "clamp": True,
        "bounds": (0.0, 1.0),
        "seed": rng.choice((3, torch.tensor([3]))),
        "sample_ids": maybe(rng, torch.arange(BATCH)),
    }


def _logits(rng: random.Random, *names: str) -> Arguments:
    dtype = rng.choice((torch.float32, torch.float32, torch.float16, torch.bfloat16))
    return {name: normal(rng, BATCH, CLASSES, dtype=dtype) for name in names}


def _row_settings(rng: random.Random) -> Arguments:
    return {"reduction": rng.choice(REDUCTIONS), "weight": maybe(rng, torch.rand(BATCH))}


def _temperature(rng: random.Random) -> Any:
    return rng.choice((None, 2.0, torch.full((BATCH,), 2.0)))


def _kl(rng: random.Random) -> Arguments:
    given = _logits(rng, "student_logits", "teacher_logits")
    given["student_logits"].requires_grad_(rng.random() < 0.5)
    temperature = {
        "temperature": 4.0,
        "teacher_temperature": rng.choice((None, 2.0, torch.full((BATCH,), 2.0))),
        "scale_t2": True,
    }
    return {**given, **temperature, **_row_settings(rng)}


def _ard(rng: random.Random) -> Arguments:
    given = _logits(rng, "student_adv_logits", "teacher_logits", "student_logits")
    return {**given, "labels": labels(rng), "alpha": 0.5, "temperature": 30.0, **_row_settings(rng)}


def _rslad(rng: random.Random) -> Arguments:
    given = _logits(rng, "student_adv_logits", "student_logits", "teacher_logits")
    teachers = {
        name: rng.choice((None, 2.0, torch.full((BATCH,), 2.0)))
        for name in ("teacher_temperature", "clean_teacher_temperature")
    }
    return {**given, "adv_weight": 0.8, "clean_weight": 0.2, "temperature": 2.0, **teachers, **_row_settings(rng)}


def _pair(rng: random.Random) -> Arguments:
    return {**_logits(rng, "adv_logits", "clean_logits"), "labels": labels(rng), "beta": 6.0, **_row_settings(rng)}


def _gradient(rng: random.Random) -> Arguments:
    loss = rng.choice(("ce", "kl", "margin", "dlr", "dlr_targeted"))
    target = normal(rng, BATCH, CLASSES) if loss == "kl" else labels(rng)
    return {
        **_logits(rng, "logits"),
        "target": target,
        "loss": loss,
        "labels": labels(rng) if loss == "dlr_targeted" else None,
        "temperature": 1.0,
        "kappa": 50.0,
        "with_target_grad": loss == "kl" and rng.random() < 0.5,
        "with_rows": rng.random() < 0.5,
    }


def _select(rng: random.Random) -> Arguments:
    best = images(rng)
    losses = {"best_loss": normal(rng, BATCH), "loss": normal(rng, BATCH)}
    return {"best": best, "candidate": torch.empty_like(best).copy_(images(rng)), **losses, "lower": False}


def _crop(rng: random.Random) -> Arguments:
    drawn = rng.random() < 0.6
    return {
        "images": torch.randint(256, (5, 3, 6, 4), dtype=torch.uint8),
        "positions": torch.tensor([4, 0, 0, 2]),
        "padding": 2,
        "levels": 255,
        "seed": rng.choice((7, torch.tensor([7]))) if drawn else None,
        "ids": maybe(rng, torch.arange(5)) if drawn else None,
        "flip": True,
        "channels_last": rng.random() < 0.5,
        "views": None if drawn else torch.tensor([0, 1, 2, 3]),
    }


def _affine(rng: random.Random) -> Arguments:
    x = torch.empty_like(base := images(rng), dtype=rng.choice((torch.float32, torch.bfloat16))).copy_(base)
    channels = x.shape[1]
    relu = rng.random() < 0.7
    return {
        "x": x,
        "scale": maybe(rng, torch.rand(channels)),
        "shift": maybe(rng, torch.rand(channels)),
        "residual": maybe(rng, x.clone()),
        "relu": relu,
        "mask": relu and rng.random() < 0.5,
    }


def _affine_backward(rng: random.Random) -> Arguments:
    grad = images(rng)
    mask = torch.randint(256, ((grad.numel() + 7) // 8,), dtype=torch.uint8)
    return {"grad": grad, "mask": mask, "scale": maybe(rng, torch.rand(grad.shape[1])), "relu": True}


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


def _ard_module(rng: random.Random) -> Arguments:
    given = _ard(rng)
    del given["weight"]
    return given


FUNCTIONAL = {
    "pgd_linf_step_": (F.pgd_linf_step_, _step),
    "pgd_l2_step_": (F.pgd_l2_step_, _step),
    "mifgsm_step_": (F.mifgsm_step_, _mifgsm),
    "random_start": (F.random_start, _start),
    "kl_distill_loss": (F.kl_distill_loss, _kl),
    "ard_loss": (F.ard_loss, _ard),
    "rslad_loss": (F.rslad_loss, _rslad),
    "trades_loss": (F.trades_loss, _pair),
    "mart_loss": (F.mart_loss, _pair),
    "attack_gradient": (F.attack_gradient, _gradient),
    "select_best_": (F.select_best_, _select),
    "crop_flip": (F.crop_flip, _crop),
    "affine_relu": (F.affine_relu, _affine),
    "affine_relu_": (F.affine_relu_, _affine),
    "affine_relu_backward": (F.affine_relu_backward, _affine_backward),
    "checkpoint_windows": (F.checkpoint_windows, _windows),
    "APGDRun": (_run_apgd, _apgd),
}

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
    found = [Target(f"functional.{name}", call, arguments, _ALIASES) for name, (call, arguments) in FUNCTIONAL.items()]
    return [*found, Target("losses.ARDLoss", _run_loss, _ard_module)]
