"""Every operator, called by its handle `torch.ops.ard_fast.*` with the arguments of its schema."""

from __future__ import annotations

import random

import torch

from abuse.samples import BATCH, CLASSES, grad_like, images, labels, maybe, normal
from abuse.target import Arguments, Target
from ard_fast import _ops

_NUMBERS = {"step_size": 0.1, "eps": 0.2, "targeted": False, "lower": 0.0, "upper": 1.0}


def _per_sample(rng: random.Random, *names: str) -> Arguments:
    return {name: maybe(rng, torch.full((BATCH,), 0.1)) for name in names}


def _step(rng: random.Random) -> Arguments:
    x = images(rng)
    sizes = _per_sample(rng, "step_size_per_sample", "eps_per_sample")
    return {"x_adv": x.clone(), "grad": grad_like(rng, x), "x": x, **sizes, **_NUMBERS}


def _mifgsm(rng: random.Random) -> Arguments:
    step = _step(rng)
    return {**step, "momentum": torch.zeros_like(step["x"]), "decay": 0.9}


def _start(rng: random.Random) -> Arguments:
    numbers = {"eps": 0.1, "normal": rng.random() < 0.5, "std": 0.01, "clamp": True, "lower": 0.0, "upper": 1.0}
    ids = maybe(rng, torch.arange(BATCH))
    return {
        "x": images(rng),
        **_per_sample(rng, "eps_per_sample"),
        "seed": torch.tensor([3]),
        "sample_ids": ids,
        **numbers,
    }


def _kd(rng: random.Random) -> Arguments:
    clean = maybe(rng, normal(rng, BATCH, CLASSES))
    two_students = clean is not None and rng.random() < 0.5
    flags = {"reduce": rng.random() < 0.5, "with_grad": rng.random() < 0.5, "with_teacher_grad": clean is None}
    flags["scaled"] = clean is None and flags["with_grad"] and rng.random() < 0.5
    names = ("temperature", "teacher_temperature", "clean_teacher_temperature", "kl_weight", "clean_weight")
    return {
        "student": normal(rng, BATCH, CLASSES),
        "teacher": normal(rng, BATCH, CLASSES),
        "clean": clean,
        "labels": None if clean is None or two_students else labels(rng),
        **_per_sample(rng, "weight", "teacher_temperature_per_sample"),
        "clean_teacher_temperature_per_sample": torch.ones(BATCH) if two_students else None,
        **dict.fromkeys((*names, "kl_grad_weight", "clean_grad_weight"), 2.0),
        **flags,
    }


def _pair(rng: random.Random) -> Arguments:
    weights = dict.fromkeys(("kl_weight", "ce_weight", "kl_grad_weight", "ce_grad_weight"), 2.0)
    logits = {"adv": normal(rng, BATCH, CLASSES), "clean": normal(rng, BATCH, CLASSES), "labels": labels(rng)}
    return {
        **logits,
        **_per_sample(rng, "weight"),
        "mart": rng.random() < 0.5,
        **weights,
        "reduce": True,
        "with_grad": True,
    }


def _scale_rows(rng: random.Random) -> Arguments:
    return {
        "grad": normal(rng, BATCH, CLASSES),
        "scale": rng.choice((torch.tensor(2.0), torch.rand(BATCH))),
        "factor": 3.0,
    }


def _gradient(rng: random.Random) -> Arguments:
    loss = rng.randrange(4)
    return {
        "logits": normal(rng, BATCH, CLASSES),
        "labels": labels(rng),
        "target_classes": labels(rng) if loss == 3 else None,
        "loss": loss,
        "kappa": 50.0,
        "with_rows": rng.random() < 0.5,
        "scaled": rng.random() < 0.5,
    }


def _apgd(rng: random.Random) -> Arguments:
    x = images(rng)
    grad = grad_like(rng, x)
    return {
        **{name: x.clone() for name in ("x_adv", "x_prev", "x_best")},
        "grad_best": grad.clone(),
        "x_fooled": x.clone(),
        "state": torch.rand(7, BATCH),
        "state_out": torch.rand(7, BATCH),
        "grad": maybe(rng, grad),
        "x": x,
        "loss_rows": normal(rng, BATCH),
        "correct": torch.ones(BATCH, dtype=torch.bool),
        **_per_sample(rng, "eps_per_sample"),
        "eps": 0.1,
        "l2": rng.random() < 0.5,
        "first": rng.random() < 0.5,
        "window": rng.choice((0, 2)),
        "rho": 0.75,
        "momentum": 0.75,
        "lower": 0.0,
        "upper": 1.0,
    }


def _select(rng: random.Random) -> Arguments:
    best = images(rng)
    losses = {name: normal(rng, BATCH) for name in ("best_loss", "loss", "best_loss_out")}
    return {"best": best, "candidate": best.flip(0).contiguous(memory_format=_format(best)), **losses, "lower": False}


def _format(x: torch.Tensor) -> torch.memory_format:
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _crop(rng: random.Random) -> Arguments:
    drawn = rng.random() < 0.6
    return {
        "images": torch.randint(256, (5, 3, 6, 4), dtype=torch.uint8),
        "positions": torch.tensor([4, 0, 0, 2]),
        "seed": torch.tensor([7]) if drawn else None,
        "ids": maybe(rng, torch.arange(5)) if drawn else None,
        "views": None if drawn else torch.tensor([0, 1, 2, 3]),
        "padding": 2,
        "flip": True,
        "levels": 255,
        "channels_last": rng.random() < 0.5,
    }


def _fold(rng: random.Random) -> Arguments:
    channels = 4
    weight = normal(rng, channels, 2, 3, 3)
    vectors = [maybe(rng, torch.rand(channels)) for _ in range(3)]
    alone = [None, None, torch.rand(3), None, torch.rand(3), torch.rand(3)]
    return {
        "weights": torch.zeros(weight.numel(), dtype=rng.choice((torch.float32, torch.float16))),
        "affine": torch.zeros(channels + 6),
        "tensors": [weight, *vectors, torch.rand(channels), torch.rand(channels), *alone],
        "eps": [1e-5, 1e-3],
        "places": [0, -1, 0, -1, channels, channels + 3],
    }


def _affine(rng: random.Random) -> Arguments:
    x = images(rng)
    relu = rng.random() < 0.7
    vectors = {name: maybe(rng, torch.rand(x.shape[1])) for name in ("scale", "shift")}
    return {"x": x, **vectors, "residual": maybe(rng, x.clone()), "relu": relu, "mask": relu}


def _affine_backward(rng: random.Random) -> Arguments:
    grad = images(rng)
    mask = torch.randint(256, ((grad.numel() + 7) // 8,), dtype=torch.uint8)
    return {"grad": grad, "mask": maybe(rng, mask), "scale": maybe(rng, torch.rand(grad.shape[1]))}


OPS = {
    "pgd_linf_step_": (_ops.pgd_linf_step_, _step),
    "pgd_l2_step_": (_ops.pgd_l2_step_, _step),
    "mifgsm_step_": (_ops.mifgsm_step_, _mifgsm),
    "random_start": (_ops.random_start, _start),
    "kd_loss": (_ops.kd_loss, _kd),
    "pair_loss": (_ops.pair_loss, _pair),
    "scale_rows_": (_ops.scale_rows_, _scale_rows),
    "attack_gradient": (_ops.attack_gradient, _gradient),
    "apgd_step_": (_ops.apgd_step_, _apgd),
    "select_best_": (_ops.select_best_, _select),
    "crop_flip": (_ops.crop_flip, _crop),
    "fold_batch_norm_": (_ops.fold_batch_norm_, _fold),
    "affine_relu": (_ops.affine_relu, _affine),
    "affine_relu_": (_ops.affine_relu_, _affine),
    "affine_relu_backward": (_ops.affine_relu_backward, _affine_backward),
}

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
    for name, (op, arguments) in OPS.items():
        aliases = {item.name: (item.name.removesuffix("_per_sample"),) for item in op._schema.arguments}
        aliases |= _FOLD if name == "fold_batch_norm_" else _FITS
        found.append(Target(f"torch.ops.ard_fast.{name}", op, arguments, aliases))
    return found
