"""Robust accuracy against the radius of the ball."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ard_fast.evaluation.runner import Attack, Evaluator, StageResult


class CurvePoint(NamedTuple):
    """Accuracy in percent at a radius."""

    eps: float
    robust_acc: float
    stage: StageResult


def accuracy_curve(
    evaluator: Evaluator, name: str, make_attack: Callable[[float], Attack], radii: Sequence[float]
) -> Iterator[CurvePoint]:
    """Attack at growing radii, and yield a point after each.

    An image fooled inside one ball is fooled inside every larger one, so each radius attacks only what the smaller
    ones left right, and the curve never rises.

    Args:
        evaluator: after `clean`; its `worst`, `adversarial` and `results` are left alone.
        name: of the attack, for the listener.
        make_attack: the attack for a radius.
        radii: in any order; doubles are dropped.
    """
    left = evaluator.right.clone()
    for eps in sorted(set(radii)):
        if eps > 0:
            left, stage = evaluator.attack(f"{name} at eps {eps:.4g}", make_attack(eps), left, eps)
        else:
            stage = evaluator.results[0].stages[0]
        yield CurvePoint(eps, 100.0 * int(left.sum()) / len(left), stage)
