"""Attacks as published codes run them, quirks included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ard_fast.attacks.apgd import APGD, APGDT
from ard_fast.attacks.base import GradientAttack
from ard_fast.attacks.in_turn import InTurn
from ard_fast.attacks.kl import KLPGD
from ard_fast.attacks.pgd import PGD
from ard_fast.functional._arguments import one_of


def preset(name: str, eps: float | Tensor | None = None, **changes: Any) -> GradientAttack | InTurn:
    """The attack of a published code.

    Args:
        name: "ard", "trades", "rslad", "adaad", "torchattacks" or "autoattack": the functions of this module.
        eps: radius; None takes the code's own. At another radius than that the step keeps its ratio to it.
        changes: other arguments of the attack's class, such as `steps` or `norm`.

    Raises:
        ValueError: no such preset, or an argument out of range.
        TypeError: the attack has no such argument.

    Example:
        >>> attack = preset("trades", eps=8 / 255)
        >>> x_adv = attack(model, x)
    """
    attack = _PRESETS[one_of(name, "name", PRESETS)]()
    if eps is not None:
        return attack.at_eps(eps, **changes)
    return attack.replace(**changes) if changes else attack


def ard() -> PGD:
    """The training attack of ARD (goldblum/AdversariallyRobustDistillation, main.py) and IAD.

    * The uniform start is not clamped to the pixel range before the first forward pass.
    * The student is in train mode: batch statistics on every iterate, running ones updated by each pass.
    * Cross-entropy at the hard labels, summed; eps 8/255, 10 steps of 2/255.
    """
    return PGD(eps=8 / 255, step_size=2 / 255, steps=10, clamp_start=False, bn="train")


def trades() -> KLPGD:
    """The training attack of TRADES (yaodongyu/TRADES, trades.py). Call it without `y`.

    * KL from the model's own distribution at the clean images; computed once, where the code repeats that forward pass
      in every step (in eval mode, so the numbers are the same).
    * Start x + 0.001 N(0, 1), not clamped.
    * Eval mode; eps .031 and steps of .007, not 8/255 and 2/255.
    """
    return KLPGD(eps=0.031, step_size=0.007, steps=10)


def rslad() -> KLPGD:
    """The training attack of RSLAD (zibojia/RSLAD, rslad_loss.py). Call it with the teacher's clean logits as `y`.

    * KL from the teacher at the clean images, at temperature 1.
    * Start x + 0.001 N(0, 1), not clamped; eval mode; eps 8/255, 10 steps of 2/255.
    * The code adds 1e-5 inside the target's logarithm, which has no gradient and is left out.
    """
    return KLPGD(eps=8 / 255, step_size=2 / 255, steps=10)


def adaad() -> KLPGD:
    """The training attack of AdaAD (boyellow/AdaAD). Call it with the teacher, in eval mode, as `y`.

    * KL between teacher and student, both at the iterate; the gradient flows through both.
    * Start x + 0.001 N(0, 1), not clamped; student in eval mode; eps 8/255, 10 steps of 2/255 as its README says (the
      default of its command line is eps 16/255).
    """
    return KLPGD(eps=8 / 255, step_size=2 / 255, steps=10)


def torchattacks() -> PGD:
    """`torchattacks.PGD` with its defaults.

    * Uniform start, clamped; eval mode; eps 8/255, 10 steps of 2/255.
    * Its projection adds clamp(x_adv - x) to x, which rounds: pixels may differ by 6e-8 from ours.
    """
    return PGD(eps=8 / 255, step_size=2 / 255, steps=10)


def autoattack() -> InTurn:
    """The two white-box gradient attacks of AutoAttack's standard version (fra31/auto-attack), in its order.

    * APGD on cross-entropy, then APGD on the targeted DLR loss for 9 classes on what is left: 100 iterations, one start
      each. FAB-T and Square, which follow there, are not gradient attacks on a loss and not part of this.
    * Samples that are fooled leave a run after every 5 iterations, which changes no other and no accuracy.
    * The start touches the ball's surface; steps begin at 2 eps and are halved at AutoAttack's checkpoints.
    * `norm`, `steps`, ... in `preset("autoattack", norm="l2")` change both attacks.
    """
    return InTurn([APGD(eps=8 / 255, drop_every=5), APGDT(eps=8 / 255, drop_every=5)])


_PRESETS: dict[str, Callable[[], GradientAttack | InTurn]] = {
    function.__name__: function for function in (ard, trades, rslad, adaad, torchattacks, autoattack)
}
PRESETS = tuple(_PRESETS)
