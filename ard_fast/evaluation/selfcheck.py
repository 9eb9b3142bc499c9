"""Checks before and after the attacks: what would make the figures mean something else, and what to do about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ard_fast import functional as F
from ard_fast.attacks.base import backward
from ard_fast.attacks.presets import read_name
from ard_fast.evaluation.accuracy import at_chance
from ard_fast.evaluation.runner import StepResult, evaluation_mode
from ard_fast.models import Normalised
from ard_fast.models.trial import are_probabilities, check_logits

_RANDOM_TOLERANCE = 1e-4  # of normalised logits; non-deterministic GPU sums stay far below
_PIXEL_TOLERANCE = 1e-6
# What images are usually normalised with: of each data set, of any with so many channels, and pixels of 0 to 255.
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
_SQUARE_DROP, _FGSM_LEAD = 0.2, 0.5  # points


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
    """What the checks at the start found.

    Attributes:
        findings: warnings; empty when all is fine.
        measured: numbers behind them.
        differentiable: whether the logits have a gradient with respect to the images.
    """

    findings: list[Finding] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    differentiable: bool = True

    def add(self, check: str, message: str) -> None:
        self.findings.append(Finding(check, message))


def check_model(model: nn.Module, x: Tensor, y: Tensor, *, num_classes: int) -> SelfCheck:
    """Look at a network on one batch, and leave it as it was.

    Args:
        model: as it was given: its train mode, if it is in one, is seen.
        x: float32 `[B, ...]`, pixels in [0, 1].
        y: int64 `[B]`.
        num_classes: of the data set.

    Raises:
        ValueError: the output is not finite logits `[B, num_classes]`: nothing could be evaluated.
    """
    result = SelfCheck()
    _check_mode(model, result)
    _check_inputs(x, result)
    with evaluation_mode(model):
        with torch.no_grad():
            logits, again = check_logits(model, x, num_classes, "model"), model(x)
        _check_output(logits, result)
        _check_random(logits, again, result)
        _check_gradient(model, x, y, result)
    _check_accuracy(logits, y, num_classes, result)
    return result


def check_normalisation(model: nn.Module, x: Tensor, y: Tensor, dataset: str, result: SelfCheck) -> None:
    """Whether far more images are right behind a usual normalisation of the input, or without the one there is.

    A difference counts from 5 points on, and from four standard deviations of what changes by chance (McNemar).

    Args:
        model: gives logits `[B, C]`.
        x: float32 `[B, ...]`, pixels in [0, 1].
        y: int64 `[B]`.
        dataset: its name.
        result: gets the finding.
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
        return
    shares = [100.0 * float(part.float().mean()) for part in (right, better)]
    result.add(
        "normalisation",
        f"{shares[0]:.1f} % of {len(y)} images are right, and {shares[1]:.1f} % {text}: the network seems to have been "
        "trained in that way or nearly so, and the figures here do not show what it can do. Give the normalisation of "
        "its training.",
    )


def _as_option(values: Sequence[float]) -> str:
    return ",".join(f"{value:.4g}" for value in values)


def check_results(results: Sequence[StepResult]) -> list[Finding]:
    """Look at finished attacks for signs that gradients mislead."""
    findings = []
    accuracy = {result.name: result.robust_acc for result in results if result.robust_acc is not None}
    for strong in filter(_is_strong, accuracy):
        if "fgsm" in accuracy and accuracy["fgsm"] < accuracy[strong] - _FGSM_LEAD:
            findings.append(
                Finding(
                    "gradient masking",
                    f"one step (fgsm, {accuracy['fgsm']:.2f} %) fools more images than {strong} "
                    f"({accuracy[strong]:.2f} %), so many steps lose their way: gradients mislead. "
                    "Trust no gradient attack alone; run autoattack, and look at accuracy against eps.",
                )
            )
            break
    for result in results:
        stages = {stage.name: stage for stage in result.stages}
        if len(stages) > 1 and "square" in stages:
            drop = 100.0 * (stages["square"].attacked - stages["square"].left) / result.total
            if drop > _SQUARE_DROP:
                findings.append(
                    Finding(
                        "square",
                        f"the gradient-free Square lowered {result.name} by {drop:.2f} points after three gradient "
                        "attacks: these are probably misled, and the true robustness may be lower still. Look for "
                        "quantisation, saturated or random parts in the model, and try an adaptive attack.",
                    )
                )
        outside = sum(stage.outside for stage in result.stages)
        if outside:
            findings.append(
                Finding("ball", f"{outside} results of {result.name} left the ball or the pixel range; not counted.")
            )
    return findings


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
            f"{training} of {len(modules)} modules were given in train mode. They are evaluated in eval mode (running "
            "batch-norm statistics, no dropout); call model.eval() in the factory if that is what you mean.",
        )


def _check_inputs(x: Tensor, result: SelfCheck) -> None:
    low, high = float(x.min()), float(x.max())
    result.measured["pixel_range"] = [low, high]
    if low < -_PIXEL_TOLERANCE or high > 1.0 + _PIXEL_TOLERANCE:
        result.add(
            "pixels",
            f"images reach from {low:.3g} to {high:.3g}, not 0 to 1: eps would mean something else, and attacks clamp "
            "to [0, 1]. Give unnormalised images, and put the normalisation into the model as its first layer.",
        )


def _check_output(logits: Tensor, result: SelfCheck) -> None:
    result.measured["logit_range"] = [float(logits.min()), float(logits.max())]
    if are_probabilities(logits):
        result.add(
            "probabilities",
            "the output looks like probabilities (rows sum to 1, all in [0, 1]). A second softmax in the loss flattens "
            "the gradient and makes attacks look weak: return logits, without the softmax.",
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
            "Attacks then follow noisy gradients and figures change from run to run: switch the randomness off, or "
            "attack the average over many passes (eot=20 of ard_fast.attacks).",
        )


def _check_gradient(model: nn.Module, x: Tensor, y: Tensor, result: SelfCheck) -> None:
    probe = x.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = model(probe)
        logits = logits.float() if logits.dtype == torch.float64 else logits
        # As attacks have it: float16 does not underflow.
        at_logits, _ = F.attack_gradient(logits.detach(), y, scaled=True)
        try:
            grad = backward([logits], probe, [at_logits])
        except RuntimeError:  # no_grad or detach inside the model
            result.differentiable = False
            result.add(
                "no gradient",
                "the logits do not depend on the images in a differentiable way (no_grad, detach or numpy inside the "
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
            "so fgsm, pgd and apgd-ce cannot move them: the softmax is saturated, or a step is not differentiable. "
            "Trust margin losses (cw20, apgd-t) and autoattack instead.",
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
            f"{100.0 * accuracy:.1f} % of {len(y)} images are right, and guessing gives {100.0 * chance:.1f} "
            "%. Is it the right checkpoint and data set, in the same order of classes, and does the model expect "
            "pixels in [0, 1] (else name its normalisation: --mean and --std)?",
        )
