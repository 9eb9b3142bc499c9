"""Which attacks the names on the command line stand for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ard_fast._names import unknown
from ard_fast.attacks.autoattack import STAGES, most_targets, require_pyautoattack
from ard_fast.attacks.presets import GRAMMAR, PYAUTOATTACK, STANDARDS, Standard, make, read_name
from ard_fast.evaluation.evaluator import Attack, Step

CLEAN, AUTOATTACK = "clean", "autoattack"
ATTACK_NAMES = (CLEAN, *STANDARDS, *PYAUTOATTACK)
DEFAULT_ATTACKS = {
    "linf": ("clean", "fgsm", "pgd20", "cw20", "apgd-ce", "apgd-t"),
    "l2": ("clean", "fgsm", "pgd20", "apgd-ce", "apgd-t"),
}
ATTACKS_HELP = f"comma-separated, of: {', '.join(ATTACK_NAMES)}; also {GRAMMAR}"
_LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4, AUTOATTACK: 4}  # what the denominators of the DLR losses need


def read_names(text: str) -> tuple[str, ...]:
    """The names of a comma-separated list, each once.

    Raises:
        ValueError: none, or a name of no attack, with the nearest known one.
    """
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError(f"attacks: expected names, comma-separated; known: {', '.join(ATTACK_NAMES)}")
    for name in names:
        _read(name)
    return names


def default_attacks(norm: str, num_classes: int) -> tuple[list[str], list[str]]:
    """The attacks of an evaluation that names none, and a line for each that is left out for too few classes."""
    names, left_out = [], []
    for name in DEFAULT_ATTACKS[norm]:
        least = _least_classes(name)
        if num_classes >= least:
            names.append(name)
        else:
            left_out.append(f"{name} is left out: it needs {least} classes, the data set has {num_classes}")
    return names, left_out


def make_plan(names: Sequence[str], *, eps: float, norm: str, num_classes: int) -> list[Step]:
    """The attacks in the order given, without "clean" (which always comes first) and without duplicates.

    Args:
        names: of `ATTACK_NAMES`, or of `ard_fast.attacks.presets`.
        eps: radius.
        norm: "linf" or "l2".
        num_classes: of the model.

    Raises:
        ValueError: an unknown name, too few classes, no such attack in this norm, or `pyautoattack` is missing.
    """
    for name in names:
        standard = _read(name)
        if standard is not None and standard.norm not in (None, norm):
            raise ValueError(
                f"attacks: {name} works in the {standard.norm} ball, but eps {eps:g} is a radius of the {norm} ball; "
                f"evaluate with --norm {standard.norm} and an --eps of its own"
            )
        least = _least_classes(name)
        if num_classes < least:
            raise ValueError(f"attacks: {name} needs a model of at least {least} classes, got {num_classes}")
        if name in PYAUTOATTACK:
            require_pyautoattack(f"attacks: {name}")
    steps = []
    for name in dict.fromkeys(names):
        if name != CLEAN:
            stages = STAGES if name == AUTOATTACK else (name,)
            steps.append(Step(name, tuple((stage, _make_attack(stage, eps, norm, num_classes)) for stage in stages)))
    return steps


def curve_attack(names: Sequence[str], *, norm: str) -> tuple[str, Callable[[float], Attack]]:
    """The attack of the curve over eps: APGD-CE (no step size to choose) if it is run anyway, else PGD-20."""
    name = "apgd-ce" if {"apgd-ce", AUTOATTACK} & set(names) else "pgd20"
    return name, lambda eps: make(name, eps, norm)


def _make_attack(name: str, eps: float, norm: str, num_classes: int) -> Attack:
    return make(name, eps, norm, **{"targets": most_targets(num_classes)} if name == "fab-t" else {})


def _least_classes(name: str) -> int:
    standard = _read(name)
    return _LEAST_CLASSES.get(standard.kind if standard else name, 2)


def _read(name: str) -> Standard | None:
    """What a name says of a gradient attack; None for clean, FAB-T, Square and AutoAttack."""
    try:
        standard = read_name(name)
    except ValueError as error:
        raise ValueError(f"attacks: {error}") from error
    if standard is None and name not in ATTACK_NAMES:
        raise ValueError(f"attacks: {unknown('attack', name, ATTACK_NAMES)}, and {GRAMMAR}")
    return standard
