"""Which attacks the names on the command line stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ard_fast._names import unknown
from ard_fast.attacks.presets import GRAMMAR, STANDARDS, Standard, read_name
from ard_fast.evaluation.referees import FABT, Square, require_pyautoattack
from ard_fast.evaluation.runner import Attack, Step

CLEAN, AUTOATTACK = "clean", "autoattack"
REFEREES = ("fab-t", "square")
ATTACK_NAMES = (CLEAN, *STANDARDS, *REFEREES, AUTOATTACK)
DEFAULT_ATTACKS = {
    "linf": ("clean", "fgsm", "pgd20", "cw20", "apgd-ce", "apgd-t"),
    "l2": ("clean", "fgsm", "pgd20", "apgd-ce", "apgd-t"),
}
AUTOATTACK_STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
_LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4, AUTOATTACK: 4}  # what the denominators of the DLR losses need
ATTACKS_HELP = f"comma-separated, of: {', '.join(ATTACK_NAMES)}; also {GRAMMAR}"


def check_name(name: str) -> None:
    """Refuse what is no attack's name.

    Raises:
        ValueError: with the nearest known name.
    """
    if name not in ATTACK_NAMES and _read(name) is None:
        raise ValueError(f"attacks: {unknown('attack', name, ATTACK_NAMES)}, and {GRAMMAR}")


def default_attacks(norm: str, num_classes: int) -> tuple[list[str], list[str]]:
    """The attacks of an evaluation that names none, and in words what is left out of them for want of classes."""
    names, left_out = [], []
    for name in DEFAULT_ATTACKS[norm]:
        least = _least_classes(name)
        if num_classes >= least:
            names.append(name)
        else:
            left_out.append(f"{name} is left out: it needs {least} classes, the data set has {num_classes}")
    return names, left_out


def _least_classes(name: str) -> int:
    standard = _read(name)
    return _LEAST_CLASSES.get(standard.kind if standard else name, 2)


def _read(name: str) -> Standard | None:
    try:
        return read_name(name)
    except ValueError as error:
        raise ValueError(f"attacks: {error}") from error


def make_plan(names: Sequence[str], *, eps: float, norm: str, num_classes: int) -> list[Step]:
    """The attacks in the order given, without "clean" (which always comes first) and without doubles.

    Args:
        names: of `ATTACK_NAMES`, or of `ard_fast.attacks.presets`.
        eps: radius.
        norm: "linf" or "l2".
        num_classes: of the model.

    Raises:
        ValueError: an unknown name, too few classes, no such attack in this norm, or `pyautoattack` is missing.
    """
    for name in names:
        check_name(name)
        standard = _read(name)
        if standard is not None and standard.norm not in (None, norm):
            raise ValueError(
                f"attacks: {name} works in the {standard.norm} ball, but eps {eps:g} is a radius of the {norm} ball; "
                f"evaluate with --norm {standard.norm} and an --eps of its own"
            )
        least = _least_classes(name)
        if num_classes < least:
            raise ValueError(f"attacks: {name} needs a model of at least {least} classes, got {num_classes}")
        if name in (*REFEREES, AUTOATTACK):
            require_pyautoattack(name)
    steps = []
    for name in dict.fromkeys(names):
        if name != CLEAN:
            stages = AUTOATTACK_STAGES if name == AUTOATTACK else (name,)
            make = partial(make_attack, eps=eps, norm=norm, num_classes=num_classes)
            steps.append(Step(name, tuple((stage, make(stage)) for stage in stages)))
    return steps


def make_attack(name: str, *, eps: float, norm: str, num_classes: int) -> Attack:
    """One attack by name."""
    if name == "fab-t":
        return FABT(eps, norm, num_classes)
    if name == "square":
        return Square(eps, norm)
    return STANDARDS[name](eps, norm)


def curve_attack(names: Sequence[str], *, norm: str) -> tuple[str, Callable[[float], Attack]]:
    """The attack of the curve over eps: APGD-CE (no step size to choose) if it is run anyhow, else PGD-20."""
    name = "apgd-ce" if {"apgd-ce", AUTOATTACK} & set(names) else "pgd20"
    return name, lambda eps: STANDARDS[name](eps, norm)
