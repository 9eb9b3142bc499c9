"""A run in words: its conventions, printed at the start and kept in the report, and its warnings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ard_fast._figures import eps_text
from ard_fast._typing import known
from ard_fast.data import Dataset
from ard_fast.evaluation.measure import PGD20_STEPS, Accuracy, at_chance
from ard_fast.evaluation.self_checks import TeacherWorth, collapsed, describe_teacher
from ard_fast.methods.base import Method
from ard_fast.methods.own import describe_method
from ard_fast.methods.registry import find_method
from ard_fast.models import MODELS, count_parameters
from ard_fast.teachers.teacher import Teacher
from ard_fast.training.checkpoint import written_by_run
from ard_fast.training.optimiser import OPTIMISERS
from ard_fast.training.settings import ROLES

if TYPE_CHECKING:
    from ard_fast.training.config import TrainConfig

_LONG_ENOUGH = 3  # validations without success until a run that may have collapsed says so


def describe_run(
    config: TrainConfig,
    dataset: Dataset,
    student: nn.Module,
    method: Method,
    teachers: Mapping[str, Teacher],
    *,
    computing: Sequence[str],
) -> list[str]:
    """Every convention that decides what the run's figures mean, a line each; `computing`: how an update computes."""
    spec = find_method(config.method)
    learns_from = "".join(f" <- {role.replace('_', ' ')} {getattr(config, role)}" for role in spec.teachers)
    learns_from += "".join(
        f" beside {role} {one.student} ({count_parameters(method.context.networks[role]):,})"
        for role, one in config.beside().items()
    )
    crop = f"crop pad {config.crop_padding}" if config.crop_padding else "no crop"
    crop = f"cropshift up to {config.cropshift}" if config.cropshift else crop
    cutout = f", cutout {config.cutout}" if config.cutout else ""
    lines = [
        f"{config.method}: {config.student} ({count_parameters(student):,} parameters){learns_from} "
        f"on {dataset.name} ({len(dataset.train)} train, {len(dataset.val)} validation, {len(dataset.test)} test)",
        *describe_method(config.method, method),
    ]
    if config.label_smoothing:
        lines.append(
            f"labels smoothed by {config.label_smoothing:g} in the loss's cross-entropy, as F.cross_entropy; attacks "
            "keep whole labels"
        )
    for key, split in (("subset", dataset.train), ("test_subset", dataset.test)):
        if getattr(config, key) is not None:
            lines.append(f"{key}: {len(split)} images of {dataset.describe(split)}, the same ones for every seed")
    if dataset.pool is not None:
        lines.append(
            f"extra data: {len(dataset.pool) - len(dataset.train)} images of {config.extra_data}, "
            f"{100 * known(config.extra_fraction):g} % of every batch; validation images are none of them"
        )
    if spec.attacks:
        lines.append(_attack(config))
    for role, teacher in teachers.items():
        lines += [f"{role.replace('_', ' ')}: {line}" for line in teacher.conventions()]
    if config.parity:
        lines += [f"parity: {quirk.text}" for quirk in spec.quirks] or ["parity: no quirks of this method's code"]
    warmup = f", linear warm-up in {config.warmup_epochs:g} epochs" if config.warmup_epochs else ""
    momentum = "" if config.momentum is None else f", momentum {config.momentum:g}"
    lines.append(
        f"{OPTIMISERS[config.optimiser].__name__} lr {config.lr:g} ({config.schedule}{warmup}){momentum}, weight decay "
        f"{config.weight_decay:g} on all parameters, batch {config.batch_size}, {crop}, "
        f"{'flip' if config.flip else 'no flip'}{cutout}, seed {config.seed}"
    )
    lines += computing
    if method.context.networks:
        lines.append(
            f"{', '.join(method.context.networks)}: trained from weights of its own by the student's optimiser at the "
            "student's rate, neither perturbed (AWP) nor averaged; kept in the training state only"
        )
    if config.awp_gamma:
        lines.append(
            f"adversarial weight perturbation: gamma {config.awp_gamma:g}, from epoch {config.awp_epoch() + 1}"
        )
    if config.averaging != "off":
        decay = f" decay {config.ema_decay:g}" if config.averaging == "ema" else ""
        lines.append(
            f"weights averaged: {config.averaging}{decay}, from epoch {config.averaging_epoch() + 1}; validation, "
            "checkpoints and test are of the average"
        )
    lines.append(_evaluation(config))
    return lines


def describe_comparison(
    config: TrainConfig, runs: Sequence[tuple[str, TrainConfig]], dataset: Dataset, parameters: Mapping[str, int]
) -> list[str]:
    """What the runs of a comparison have in common, a line each.

    Args:
        config: of the comparison.
        runs: role or method, and configuration, of every run.
        dataset: its images.
        parameters: of each network that is trained, by its name.
    """
    splits = f"{len(dataset.train):,} training, {len(dataset.val):,} validation, {len(dataset.test):,} test images"
    first = [(name, one) for name, one in runs if one.seed == config.seed]
    lines = [f"{len(runs)} runs: {len(first)} for each of {config.compare_seeds} seed(s), on {dataset.name}, {splits}"]
    for name, one in first:
        if name in ROLES:
            lines.append(
                f"{name.replace('_', ' ')}: {one.student} ({parameters[one.student]:,} parameters), trained by "
                f"{one.method} for {one.epochs} epochs"
            )
    lines += [
        f"{role.replace('_', ' ')}: {getattr(config, role)}"
        for role in ROLES
        if getattr(config, role) is not None
        and role not in dict(first)
        and any(role in find_method(name).teachers for name in config.methods())
    ]
    student = dict(first)[config.compare_methods[-1]]
    by = ", ".join(f"{name} (custom)" if ":" in name else name for name in config.compare_methods)
    lines.append(
        f"student: {student.student} ({parameters[student.student]:,} parameters), trained by {by} for "
        f"{student.epochs} epochs each"
    )
    return [*lines, _attack(student), _evaluation(student), "conventions of each run: report.md in its folder"]


def _attack(config: TrainConfig) -> str:
    steps = "" if config.steps is None else f"{config.steps} steps of "
    start = {None: "", True: ", start clamped", False: ", start not clamped"}[config.clamp_start]
    return (
        f"attack L-inf, eps {eps_text(config.eps)}, {steps}{eps_text(known(config.step_size))} (pixels in [0, 1])"
        f"{start}{'' if config.attack_bn is None else f', batch norm: {config.attack_bn}'}"
    )


def _evaluation(config: TrainConfig) -> str:
    best_by = f"PGD-{config.val_steps}" if find_method(config.method).selects_by == "robust" else "clean accuracy"
    return (
        f"evaluation: L-inf PGD-{PGD20_STEPS} on CE, eps {eps_text(config.eps)}, "
        f"step {eps_text(known(config.eval_step_size))}, uniform start, eval mode; best epoch by {best_by} on the "
        "validation images"
    )


def teacher_warnings(config: TrainConfig, worths: Mapping[str, TeacherWorth], num_classes: int) -> list[str]:
    """What is odd about the teachers, by what they are worth on the validation images."""
    doubts = {role: _doubt(config, role, worth, num_classes) for role, worth in worths.items()}
    return [f"{role}: {doubt}" for role, doubt in doubts.items() if doubt]


def _doubt(config: TrainConfig, role: str, worth: TeacherWorth, num_classes: int) -> str | None:
    """Why a teacher is probably not what it was taken for."""
    source, flag, found = getattr(config, role), f"--{role.replace('_', '-')}", describe_teacher(worth)
    if worth.probabilities:
        return (
            "its output looks like probabilities; the loss applies a softmax, so these would give nearly uniform soft "
            "labels: the teacher must return logits, without the softmax"
        )
    # A run's checkpoint holds its normalisation.
    of_run = getattr(config, f"{role}_mean") is None and (source in MODELS or written_by_run(source))
    if worth.normaliser and not of_run:
        return worth.normaliser.replace(" --mean", f" {flag}-mean").replace(" --std", f" {flag}-std")
    if at_chance(worth.clean, worth.images, num_classes):
        return (
            f"{found}, and guessing gives {100.0 / num_classes:.1f} %. Check that its weights were loaded, its "
            f"normalisation ({flag}-mean and {flag}-std), the order of its classes, and the data set it was trained on"
        )
    needs_robust = role == "teacher" and find_method(config.method).attacks and config.eps > 0
    if needs_robust and worth.robust <= 100.0 / num_classes:
        return f"{found}: it is not robust, but this method relies on a robust teacher"
    return None


def collapse_warnings(
    config: TrainConfig, what: str, accuracy: Accuracy, *, labels: Tensor, num_classes: int
) -> list[str]:
    """A warning if the network called `what`, evaluated on images with these labels, has learned nothing."""
    wrong = collapsed(accuracy, labels, num_classes)
    if wrong is None:
        return []
    rate, temperature = known(config.lr), config.temperature
    helps = f"A smaller learning rate (--lr {rate / 10:g} instead of {rate:g})"
    if temperature is not None and config.reduction == "mean":  # the gradient is divided by the classes
        helps = f"A smaller --temperature (now {temperature:g}), larger --lr (now {rate:g}), --reduction batchmean"
    return [
        f"the {what} has collapsed: {wrong}. {helps}, a learning rate that warms up (--warmup-epochs), more epochs "
        "or a smaller --eps at first usually help"
    ]


def late_warnings(
    config: TrainConfig, rows: Sequence[Mapping[str, Any]], labels: Tensor, num_classes: int
) -> list[str]:
    """A warning when the last validations, by the rows of the metrics, found nothing learned; once, and again after a
    success."""
    validated = [row for row in rows if row["val_clean"] is not None]
    found = []
    for row in validated:
        accuracy = Accuracy(row["val_clean"], row["val_robust"])
        found.append(collapse_warnings(config, "run", accuracy, labels=labels, num_classes=num_classes))
    recent = found[-_LONG_ENOUGH:]
    if len(recent) < _LONG_ENOUGH or not all(recent) or (len(found) > _LONG_ENOUGH and found[-_LONG_ENOUGH - 1]):
        return []
    return [f"after {validated[-1]['epoch']} epochs {recent[-1][0]}"]
