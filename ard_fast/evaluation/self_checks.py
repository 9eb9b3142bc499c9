"""Warnings: a network that is not what it was taken for, a teacher at chance, signs of gradient masking."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ard_fast import functional as F
from ard_fast.attacks import PGD
from ard_fast.attacks.backward import backward
from ard_fast.attacks.presets import read_name
from ard_fast.data import Dataset
from ard_fast.data.splits import stratified_order
from ard_fast.evaluation.evaluator import evaluation_mode
from ard_fast.evaluation.measure import Accuracy, at_chance, evaluate
from ard_fast.evaluation.results import EVALUATION_SEED, Agreement, StepResult
from ard_fast.models import Normalised
from ard_fast.models.trial import are_probabilities, check_logits

_RANDOM_TOLERANCE = 1e-4  # of normalised logits; non-deterministic GPU sums stay far below
# Usual normalisations: of each data set, of any data set with so many channels, and of pixels from 0 to 255.
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_NORMALISERS = {
    "cifar10": [(_CIFAR10_MEAN, (0.2470, 0.2435, 0.2616)), (_CIFAR10_MEAN, (0.2023, 0.1994, 0.2010))],
    "cifar100": [((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))],
    "mnist": [((0.1307,), (0.3081,))],
    "fashion-mnist": [((0.2860,), (0.3530,))],
}
_OF_CHANNELS = {3: [((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]}
_OF_ALL = [((0.5,), (0.5,)), ((0.0,), (1 / 255,))]
_NORMALISER_GAIN, _NORMALISER_SIGMA = 0.05, 4.0
_SQUARE_DROP, _LEAD = 0.2, 0.5  # points
_PARTS = (16, 48, 192)  # images of a teacher's measurement; it stops after a part when it has taken long enough
_SECONDS = 5.0


@dataclass(frozen=True)
class Finding:
    """A warning.

    Attributes:
        check: a short name.
        message: what was seen, what it means, what to do.
    """

    check: str
    message: str

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


@dataclass
class SelfCheck:
    """What the checks before the attacks found.

    Attributes:
        findings: warnings.
        measured: the numbers behind them.
        differentiable: whether the logits have a gradient with respect to the images.
    """

    findings: list[Finding] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    differentiable: bool = True

    def add(self, check: str, message: str) -> None:
        self.findings.append(Finding(check, message))


def check_model(model: nn.Module, x: Tensor, y: Tensor, *, num_classes: int) -> SelfCheck:
    """Check a network on one batch; its modes are unchanged afterwards.

    Args:
        model: as its factory returned it: modules in train mode are reported.
        x: float32 `[B, ...]`, pixels in [0, 1].
        y: int64 `[B]`.
        num_classes: of the data set.

    Raises:
        ValueError: the output is not finite logits `[B, num_classes]`: nothing could be evaluated.
    """
    result = SelfCheck()
    _check_mode(model, result)
    result.measured["pixel_range"] = [float(x.min()), float(x.max())]
    with evaluation_mode(model):
        with torch.no_grad():
            logits, again = check_logits(model, x, num_classes, "model"), model(x)
        _check_output(logits, result)
        _check_random(logits, again, result)
        _check_gradient(model, x, y, result)
    _check_accuracy(logits, y, num_classes, result)
    return result


def check_normalisation(model: nn.Module, x: Tensor, y: Tensor, dataset: str) -> str:
    """Whether accuracy is far higher with a usual normalisation of the input, or without the one that is applied.

    Arguments are as those of `check_model`.

    Returns:
        A warning for a difference of at least 5 points and four standard deviations of its chance value (McNemar), else
        an empty text.
    """
    if isinstance(model, Normalised):
        others = {"without the mean and std given or in the file": model.network}
    else:
        deviations, means = torch.std_mean(x, dim=(0, 2, 3))
        own = [(tuple(means.tolist()), tuple(deviations.clamp_min(1e-3).tolist()))]
        pairs = _NORMALISERS.get(dataset, own) + _OF_CHANNELS.get(x.shape[1], []) + _OF_ALL
        others = {
            f"with --mean {_as_option(mean)} --std {_as_option(std)}": Normalised(model, mean, std).to(x.device)
            for mean, std in pairs
        }
    with evaluation_mode(model), torch.no_grad():
        right = model(x).argmax(1) == y
        found = {text: other(x).argmax(1) == y for text, other in others.items()}
    text, better = max(found.items(), key=lambda item: int(item[1].sum()))
    gained, changed = int(better.sum()) - int(right.sum()), int((better != right).sum())
    if gained < _NORMALISER_GAIN * len(y) or gained < _NORMALISER_SIGMA * math.sqrt(changed):
        return ""
    shares = [100.0 * float(part.float().mean()) for part in (right, better)]
    return (
        f"{shares[0]:.1f} % of {len(y)} images are classified correctly, and {shares[1]:.1f} % {text}: the network "
        "seems to have been trained that way, so these figures do not show what it can do. Give the normalisation "
        "that it was trained with."
    )


def _as_option(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def check_results(results: Sequence[StepResult]) -> list[Finding]:
    """Signs of gradient masking in the results of finished attacks."""
    found = SelfCheck()
    accuracy = {result.name: result.robust_acc for result in results if result.robust_acc is not None}
    weaker = [name for name in accuracy if _is_strong(name) and accuracy[name] - _LEAD > accuracy.get("fgsm", 100.0)]
    if weaker:
        found.add(
            "gradient masking",
            f"one step (fgsm, {accuracy['fgsm']:.2f} %) fools more images than {weaker[0]} "
            f"({accuracy[weaker[0]]:.2f} %), so its gradients are misleading. Do not rely on gradient attacks alone: "
            "run autoattack, and look at accuracy against eps.",
        )
    own = {result.name: result.name.removesuffix(f" from {result.source}") for result in results if result.source}
    leads = {name: accuracy[own[name]] - accuracy[name] for name in own if {name, own[name]} <= accuracy.keys()}
    name = max(leads, key=lambda key: leads[key], default="")
    if name and leads[name] > _LEAD:
        found.add(
            "gradient masking",
            f"{name} fools more images ({accuracy[name]:.2f} % robust) than {own[name]} on the network itself "
            f"({accuracy[own[name]]:.2f} %), so its own gradients are misleading and its robust accuracy is lower than "
            "attacks on it show. Run autoattack, and look for the cause.",
        )
    for result in results:
        for stage in result.stages:
            if stage.agreement is not None and _is_weaker(stage.agreement):
                found.add(
                    "precision",
                    f"{stage.name} fools fewer images in bfloat16 than in float32 ({stage.agreement}): rounding hides "
                    "the gradients. Evaluate with --precision fp32.",
                )
        square = next((stage for stage in result.stages if stage.name == "square"), None)
        if square is not None and len(result.stages) > 1:
            drop = 100.0 * (square.attacked - square.left) / result.total
            if drop > _SQUARE_DROP:
                found.add(
                    "square",
                    f"the gradient-free Square lowered {result.name} by {drop:.2f} points after three gradient "
                    "attacks: the gradients are probably misleading, and the true robust accuracy may be lower still. "
                    "Look for quantisation, saturation or randomness in the model, and try an adaptive attack.",
                )
        outside = sum(stage.outside for stage in result.stages)
        if outside:
            found.add(
                "ball", f"{outside} results of {result.name} left the ball or the pixel range; not counted as fooled."
            )
    return found.findings


def _is_weaker(agreement: Agreement) -> bool:
    """Whether the attack in bfloat16 fools fewer images, by 1 % of them and two standard deviations (McNemar)."""
    missed, differ = agreement.robust - agreement.robust_fp32, agreement.images - agreement.equal
    return missed >= 0.01 * agreement.images and missed > 2.0 * math.sqrt(differ)


def _is_strong(name: str) -> bool:
    """Whether an attack follows the same gradient as FGSM, many times."""
    attack = read_name(name)
    return attack is not None and attack.kind in ("pgd", "apgd-ce") and attack.steps >= 10 and not attack.trades


def _check_mode(model: nn.Module, result: SelfCheck) -> None:
    modules = list(model.modules())
    training = sum(module.training for module in modules)
    result.measured["modules_in_train_mode"] = training
    if training:
        result.add(
            "train mode",
            f"{training} of {len(modules)} modules are in train mode. They are evaluated in eval mode (running "
            "batch-norm statistics, no dropout); call model.eval() in the factory if that is intended.",
        )


def _check_output(logits: Tensor, result: SelfCheck) -> None:
    result.measured["logit_range"] = [float(logits.min()), float(logits.max())]
    if are_probabilities(logits):
        result.add(
            "probabilities",
            "the output looks like probabilities (rows sum to 1, all in [0, 1]). A second softmax in the loss flattens "
            "the gradient and weakens attacks: return logits, without the softmax.",
        )


def _check_random(logits: Tensor, again: Tensor, result: SelfCheck) -> None:
    unit, unit_again = (part / part.norm(dim=1, keepdim=True).clamp_min(1e-10) for part in (logits, again))
    difference = float((unit - unit_again).norm(dim=1).max())
    changed = int((logits.argmax(1) != again.argmax(1)).sum())
    result.measured["randomness"] = difference
    if difference > _RANDOM_TOLERANCE or changed:
        result.add(
            "randomness",
            f"two passes over the same images differ (by {difference:.2g} of the logits' norm, {changed} predictions). "
            "Attacks then follow noisy gradients, and figures change from run to run: turn the randomness off, or "
            "attack the average over many passes (eot=20 in ard_fast.attacks).",
        )


def _check_gradient(model: nn.Module, x: Tensor, y: Tensor, result: SelfCheck) -> None:
    probe = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(probe)
        logits = logits.float() if logits.dtype == torch.float64 else logits
        # scaled, as in the attacks, so that float16 does not underflow
        at_logits, _ = F.attack_gradient(logits.detach(), y, scaled=True)
        try:
            grad = backward([logits], probe, [at_logits])
        except RuntimeError:  # no_grad or detach inside the model
            result.differentiable = False
            result.add(
                "no gradient",
                "the logits are not differentiable with respect to the images (no_grad, detach or numpy inside the "
                "model?). Gradient attacks cannot run; clean and square can.",
            )
            return
    flat = grad.flatten(1)
    zero = int((flat == 0).all(1).sum())
    not_finite = int((~torch.isfinite(flat)).any(1).sum())
    result.measured["zero_gradient_images"] = zero / len(x)
    result.measured["zero_gradient_pixels"] = float((flat == 0).float().mean())
    if zero:
        result.add(
            "zero gradient",
            f"the gradient of the cross-entropy is exactly zero for {zero} of {len(x)} images ({zero / len(x):.0%}), "
            "so fgsm, pgd and apgd-ce cannot change them: the softmax is saturated, or a layer is not differentiable. "
            "Use margin losses (cw20, apgd-t) and autoattack instead.",
        )
    if not_finite:
        result.add(
            "gradient",
            f"the gradient of the cross-entropy holds NaN or infinity for {not_finite} of {len(x)} images; look for a "
            "square root or a logarithm at zero in the model.",
        )


def _check_accuracy(logits: Tensor, y: Tensor, num_classes: int, result: SelfCheck) -> None:
    accuracy, chance = float((logits.argmax(1) == y).float().mean()), 1.0 / num_classes
    result.measured["sample_accuracy"] = 100.0 * accuracy
    if at_chance(100.0 * accuracy, len(y), num_classes):
        result.add(
            "accuracy",
            f"{100.0 * accuracy:.1f} % of {len(y)} images are classified correctly, and guessing gives "
            f"{100.0 * chance:.1f} %. Check that checkpoint and data set belong together and have the same order of "
            "classes, and that the model takes pixels in [0, 1]; if not, give its normalisation by --mean and --std.",
        )


# ---- networks of a training run -----------------------------------------------------------------------------------


def collapsed(accuracy: Accuracy, labels: Tensor, num_classes: int) -> str | None:
    """A description of what is wrong with a network that has not learned; None for other networks.

    A network that predicts the same class for every image has the same clean and robust accuracy, the share of that
    class, which may be far above chance where classes differ in size.

    Args:
        accuracy: clean and robust.
        labels: int64 `[N]`, of the images it was measured on.
        num_classes: C.
    """
    right = round(accuracy.clean * len(labels) / 100.0)
    if accuracy.clean == accuracy.robust and right in labels.bincount(minlength=num_classes).tolist():
        return f"it predicts the same class for every image ({accuracy.clean:.2f} % accuracy, clean and under attack)"
    if at_chance(accuracy.clean, len(labels), num_classes):
        chance = 100.0 / num_classes
        return (
            f"its accuracy on {len(labels)} images is {accuracy.clean:.2f} %, not clearly above chance ({chance:.2f} %)"
        )
    return None


class TeacherWorth(NamedTuple):
    """A teacher measured on some validation images, accuracies in percent.

    Attributes:
        clean: clean accuracy.
        robust: accuracy under PGD.
        steps: of PGD.
        images: their number.
        normaliser: what `check_normalisation` found, or "".
        probabilities: whether it returns probabilities instead of logits.
    """

    clean: float
    robust: float
    steps: int
    images: int
    normaliser: str
    probabilities: bool = False


def measure_teacher(network: nn.Module, dataset: Dataset, *, eps: float, step_size: float, steps: int) -> TeacherWorth:
    """Measure a teacher in seconds: on up to 256 validation images, fewer if the first ones take long.

    The network is in eval mode; the attack is PGD in the L-infinity ball. Random state and modes are unchanged
    afterwards.
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
    part = split.take(order[:images])
    x = part.images.float() / dataset.levels
    normaliser = check_normalisation(network, x, part.labels, dataset.name)
    with torch.no_grad():
        return TeacherWorth(clean, robust, steps, images, normaliser, are_probabilities(network(x[: _PARTS[0]])))


def describe_teacher(worth: TeacherWorth) -> str:
    """For example `clean 97.3 %, PGD-10 61.2 % on 256 validation images`."""
    return f"clean {worth.clean:.1f} %, PGD-{worth.steps} {worth.robust:.1f} % on {worth.images} validation images"
