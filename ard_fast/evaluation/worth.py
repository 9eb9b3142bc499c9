"""What a network is worth: at chance, constant, or a teacher that is not what it was taken for."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ard_fast.attacks import PGD
from ard_fast.data import Dataset
from ard_fast.data.splits import stratified_order
from ard_fast.evaluation.accuracy import EVALUATION_SEED, Accuracy, at_chance, evaluate
from ard_fast.evaluation.selfcheck import SelfCheck, check_normalisation
from ard_fast.models.trial import are_probabilities

_PARTS = (16, 48, 192)  # images of a teacher's measurement; after each part it may have taken long enough
_SECONDS = 5.0


def collapsed(accuracy: Accuracy, labels: Tensor, num_classes: int) -> str | None:
    """What is wrong with a network that has not learned, in words; None for others.

    One that predicts the same class for every image has the same accuracy under attack, the share of that class, which
    of classes of unequal size may be far above chance.

    Args:
        accuracy: clean and under attack.
        labels: int64 `[N]`, of the images it was measured on.
        num_classes: C.
    """
    right = round(accuracy.clean * len(labels) / 100.0)
    if accuracy.clean == accuracy.robust and right in labels.bincount(minlength=num_classes).tolist():
        return f"it predicts the same class for every image ({accuracy.clean:.2f} % are right, clean and under attack)"
    if at_chance(accuracy.clean, len(labels), num_classes):
        guessing = f"not clearly more than guessing gives ({100.0 / num_classes:.2f} %)"
        return f"{accuracy.clean:.2f} % of {len(labels)} images are right, {guessing}"
    return None


class TeacherWorth(NamedTuple):
    """A teacher on some of the validation images, accuracies in percent.

    Attributes:
        clean: of the images as they are.
        robust: under PGD.
        steps: of PGD.
        images: how many.
        normaliser: what `check_normalisation` found, or "".
        probabilities: whether it returns these instead of logits.
    """

    clean: float
    robust: float
    steps: int
    images: int
    normaliser: str
    probabilities: bool = False


def measure_teacher(network: nn.Module, dataset: Dataset, *, eps: float, step_size: float, steps: int) -> TeacherWorth:
    """Measure a teacher in seconds: on up to 256 validation images, fewer where the first ones take long.

    Random state and modes are left as they were.

    Args:
        network: in eval mode, on the device of the validation images.
        dataset: whose validation images are taken.
        eps: radius of the L-infinity ball.
        step_size: of PGD.
        steps: of PGD.
    """
    split = dataset.val
    order = torch.from_numpy(stratified_order(split.labels.cpu().numpy(), EVALUATION_SEED))
    order = order[: sum(_PARTS)].to(split.labels.device)
    attack = PGD(eps=eps, step_size=step_size, steps=steps, bn="eval")
    started, images, right = time.perf_counter(), 0, [0.0, 0.0]
    for size in _PARTS:
        part = split.take(order[images : images + size])
        if not len(part) or time.perf_counter() - started > _SECONDS:
            break
        accuracy = evaluate(network, part, levels=dataset.levels, attack=attack, seed=EVALUATION_SEED)
        right = [total + value * len(part) for total, value in zip(right, accuracy, strict=True)]
        images += len(part)
    clean, robust = (total / images for total in right)
    part, check = split.take(order[:images]), SelfCheck()
    x = part.images.float() / dataset.levels
    check_normalisation(network, x, part.labels, dataset.name, check)
    normaliser = " ".join(finding.message for finding in check.findings)
    with torch.no_grad():
        return TeacherWorth(clean, robust, steps, images, normaliser, are_probabilities(network(x[: _PARTS[0]])))


def describe_teacher(worth: TeacherWorth) -> str:
    """For example `clean 97.3 %, PGD-10 61.2 % on 256 validation images`."""
    return f"clean {worth.clean:.1f} %, PGD-{worth.steps} {worth.robust:.1f} % on {worth.images} validation images"


def doubts(role: str, worth: TeacherWorth, num_classes: int, *, robust: bool, of_run: bool = False) -> list[str]:
    """What speaks against a teacher, a warning each.

    Args:
        role: "teacher" or "clean_teacher".
        worth: measured.
        num_classes: of the data set.
        robust: whether the method hands on this teacher's robustness.
        of_run: whether the trainer made it, which keeps the normalisation of its training.
    """
    flag = f"--{role.replace('_', '-')}"
    found = describe_teacher(worth)
    if worth.probabilities:
        return [
            f"{role}: its output looks like probabilities; the loss applies a softmax of its own, which makes the soft "
            "labels nearly uniform: the teacher must return logits, without the softmax"
        ]
    if worth.normaliser and not of_run:
        named = worth.normaliser.replace(" --mean", f" {flag}-mean").replace(" --std", f" {flag}-std")
        return [f"{role}: {named}"]
    if at_chance(worth.clean, worth.images, num_classes):
        return [
            f"{role}: {found}, and guessing gives {100.0 / num_classes:.1f} %. Are its weights loaded, does it need a "
            f"normaliser ({flag}-mean and {flag}-std), are its classes in this order, was it trained on this data set?"
        ]
    if robust and worth.robust <= 100.0 / num_classes:
        return [f"{role}: {found}: it is not robust, but this method relies on a robust teacher"]
    return []
