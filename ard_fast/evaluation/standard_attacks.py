"""Which attacks the names on the command line stand for, and the two attacks of AutoAttack that are not ours.

AutoAttack's standard version (Croce & Hein, ICML 2020): APGD-CE, APGD-T on nine targets, FAB-T on nine targets, Square
with 5,000 queries. The first two are `ard_fast.attacks`; FAB-T (Croce & Hein, ICML 2020) and Square (Andriushchenko,
Croce, Flammarion, Hein; ECCV 2020) come from the package `pyautoattack` (optional extra `autoattack`), with the
ensemble's own parameters.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ard_fast._names import unknown
from ard_fast.attacks.presets import GRAMMAR, STANDARDS, Standard, read_name
from ard_fast.evaluation.evaluator import Attack, Step

CLEAN, AUTOATTACK = "clean", "autoattack"
PYAUTOATTACK = ("fab-t", "square")
ATTACK_NAMES = (CLEAN, *STANDARDS, *PYAUTOATTACK, AUTOATTACK)
DEFAULT_ATTACKS = {
    "linf": ("clean", "fgsm", "pgd20", "cw20", "apgd-ce", "apgd-t"),
    "l2": ("clean", "fgsm", "pgd20", "apgd-ce", "apgd-t"),
}
AUTOATTACK_STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
ATTACKS_HELP = f"comma-separated, of: {', '.join(ATTACK_NAMES)}; also {GRAMMAR}"
_LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4, AUTOATTACK: 4}  # what the denominators of the DLR losses need
_NORM_NAMES = {"linf": "Linf", "l2": "L2"}
_FAB = {"n_restarts": 1, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9}
_MAX_TARGETS = 9
_SQUARE = {"p_init": 0.8, "n_restarts": 1}


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
        if name in (*PYAUTOATTACK, AUTOATTACK):
            _require_pyautoattack(name)
    steps = []
    for name in dict.fromkeys(names):
        if name != CLEAN:
            stages = AUTOATTACK_STAGES if name == AUTOATTACK else (name,)
            steps.append(Step(name, tuple((stage, _make_attack(stage, eps, norm, num_classes)) for stage in stages)))
    return steps


def curve_attack(names: Sequence[str], *, norm: str) -> tuple[str, Callable[[float], Attack]]:
    """The attack of the curve over eps: APGD-CE (no step size to choose) if it is run anyway, else PGD-20."""
    name = "apgd-ce" if {"apgd-ce", AUTOATTACK} & set(names) else "pgd20"
    return name, lambda eps: STANDARDS[name](eps, norm)


def _make_attack(name: str, eps: float, norm: str, num_classes: int) -> Attack:
    if name == "fab-t":
        return FABT(eps, norm, num_classes)
    return Square(eps, norm) if name == "square" else STANDARDS[name](eps, norm)


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


# ---- FAB-T and Square ---------------------------------------------------------------------------------------------


class FABT:
    """FAB-T as AutoAttack runs it: 9 targets (fewer where there are fewer classes) x 100 iterations, 1 restart,
    alpha_max 0.1, eta 1.05, beta 0.9, start at the image. Nothing is random.

    Args:
        eps: radius; the minimal perturbation found counts where it is inside.
        norm: "linf" or "l2".
        num_classes: of the model.
        steps: iterations for each target.
    """

    def __init__(self, eps: float, norm: str, num_classes: int, steps: int = 100) -> None:
        self.eps, self.norm, self.targets, self.steps = eps, norm, min(_MAX_TARGETS, num_classes - 1), steps

    def __repr__(self) -> str:
        return (
            f"FABT(eps={self.eps!r}, norm={self.norm!r}, targets={self.targets}, steps={self.steps}, restarts=1, "
            f"alpha_max={_FAB['alpha_max']}, eta={_FAB['eta']}, beta={_FAB['beta']}, from='pyautoattack')"
        )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: Tensor, sample_ids: Tensor) -> Tensor:
        attack = _pyautoattack("fab_pt").FABAttack_PT(
            model,
            norm=_NORM_NAMES[self.norm],
            n_iter=self.steps,
            eps=self.eps,
            seed=int(seed),
            targeted=True,
            device=x.device,
            n_target_classes=self.targets,
            **_FAB,
        )
        with _own_random_state(x.device):
            return attack.perturb(x, y).detach()


class Square:
    """Square as AutoAttack runs it: 5,000 queries, p_init 0.8 halved on the fixed schedule, margin loss, 1 restart.

    The package draws the places of the squares once for a whole batch, but some signs for each image by its position
    in the batch, so that a result depends on the batch. Here those signs are drawn once for all images too: for a
    single image the distribution is the same, and its result depends on the seed only.

    Args:
        eps: radius.
        norm: "linf" or "l2".
        queries: most forward passes for an image.
    """

    def __init__(self, eps: float, norm: str, queries: int = 5000) -> None:
        self.eps, self.norm, self.queries = eps, norm, queries

    def __repr__(self) -> str:
        return (
            f"Square(eps={self.eps!r}, norm={self.norm!r}, queries={self.queries}, p_init={_SQUARE['p_init']}, "
            "loss='margin', restarts=1, from='pyautoattack')"
        )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: Tensor, sample_ids: Tensor) -> Tensor:
        attack = _pyautoattack("square").SquareAttack(
            model,
            norm=_NORM_NAMES[self.norm],
            n_queries=self.queries,
            eps=self.eps,
            seed=int(seed),
            resc_schedule=False,
            device=x.device,
            **_SQUARE,
        )
        draw = attack.random_choice
        attack.random_choice = lambda shape: draw([1, *shape[1:]] if len(shape) == 4 else shape)
        with _own_random_state(x.device), torch.no_grad():
            return attack.perturb(x, y).detach()


def _require_pyautoattack(wanted_by: str) -> None:
    """Refuse early where the package is missing."""
    try:
        _pyautoattack("fab_pt")
    except ImportError as error:
        raise ValueError(
            f"attacks: {wanted_by} needs the package pyautoattack (for FAB-T and Square): "
            f"pip install 'ard-fast[autoattack]', or leave it out ({error})"
        ) from error


def _pyautoattack(module: str) -> Any:
    return importlib.import_module(f"pyautoattack.{module}")


def _own_random_state(device: torch.device) -> Any:
    """The package seeds torch's global generators; they are restored afterwards."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
