"""What a run does, in words: the lines printed at its start and kept in its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ard_fast.data import Dataset
from ard_fast.evaluation.evaluator import PGD20_STEPS
from ard_fast.methods import METHODS, Method
from ard_fast.models import count_parameters
from ard_fast.teachers import Teacher
from ard_fast.training.config import TrainConfig


def describe_run(
    config: TrainConfig,
    dataset: Dataset,
    student: nn.Module,
    method: Method,
    teachers: Mapping[str, Teacher],
    *,
    computing: Sequence[str],
) -> list[str]:
    """Every convention that decides what the run's figures mean, a line each.

    Args:
        config: of a single method.
        dataset: what is trained on.
        student: the network.
        method: built from `config`.
        teachers: by role.
        computing: how an update computes, in words.
    """
    spec = METHODS[config.method]
    learns_from = "".join(f" <- {role.replace('_', ' ')} {getattr(config, role)}" for role in spec.teachers)
    crop = f"crop pad {config.crop_padding}" if config.crop_padding else "no crop"
    lines = [
        f"{config.method}: {config.student} ({count_parameters(student):,} parameters){learns_from} "
        f"on {dataset.name} ({len(dataset.train)} train, {len(dataset.val)} validation, {len(dataset.test)} test)",
        *method.conventions(),
    ]
    for key, split in (("subset", dataset.train), ("test_subset", dataset.test)):
        if getattr(config, key) is not None:
            lines.append(f"{key}: {len(split)} images of {dataset.describe(split)}, the same ones for every seed")
    if spec.attacks:
        steps = "" if config.steps is None else f"{config.steps} steps of "
        start = {None: "", True: ", start clamped", False: ", start not clamped"}[config.clamp_start]
        lines.append(
            f"attack L-inf, eps {config.eps:.5g}, {steps}{config.step_size:.5g} (pixels in [0, 1], no "
            f"normalisation){start}{'' if config.attack_bn is None else f', batch norm: {config.attack_bn}'}"
        )
    for role, teacher in teachers.items():
        lines += [f"{role.replace('_', ' ')}: {line}" for line in teacher.conventions()]
    if config.parity:
        lines += [f"parity: {quirk.text}" for quirk in spec.quirks] or ["parity: no quirks of this method's code"]
    lines.append(
        f"SGD lr {config.lr:g} ({config.schedule}), momentum {config.momentum:g}, weight decay "
        f"{config.weight_decay:g} on all parameters, batch {config.batch_size}, {crop}, "
        f"{'flip' if config.flip else 'no flip'}, seed {config.seed}"
    )
    lines += computing
    if config.awp_gamma:
        lines.append(
            f"adversarial weight perturbation: gamma {config.awp_gamma:g}, from epoch {config.awp_epoch() + 1}"
        )
    if config.averaging != "none":
        decay = f" decay {config.ema_decay:g}" if config.averaging == "ema" else ""
        lines.append(
            f"weights averaged: {config.averaging}{decay}, from epoch {config.averaging_epoch() + 1}; validation, "
            "checkpoints and test are of the average"
        )
    best_by = f"PGD-{config.val_steps}" if spec.selects_by == "robust" else "clean accuracy"
    lines.append(
        f"evaluation: L-inf PGD-{PGD20_STEPS} on CE, eps {config.eps:.5g}, step {config.eval_step_size:.5g}, "
        f"uniform start, eval mode; best epoch by {best_by} on the validation images"
    )
    return lines
