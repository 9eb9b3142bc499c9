"""Which attacks the names on the command line stand for, and attacks of one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ard_fast._commandline import Interrupted
from ard_fast._names import find_object, named_only, unknown
from ard_fast.attacks.apgd import APGD
from ard_fast.attacks.autoattack import STAGES, most_targets, require_pyautoattack
from ard_fast.attacks.presets import GRAMMAR, PYAUTOATTACK, STANDARDS, Standard, make, read_name
from ard_fast.evaluation.evaluator import evaluation_mode, inside_ball
from ard_fast.evaluation.results import Attack, Step
from ard_fast.models.trial import reason

CLEAN, AUTOATTACK = "clean", "autoattack"
ATTACK_NAMES = (CLEAN, *STANDARDS, *PYAUTOATTACK)
DEFAULT_ATTACKS = {
    "linf": ("clean", "fgsm", "pgd20", "cw20", "apgd-ce", "apgd-t"),
    "l2": ("clean", "fgsm", "pgd20", "apgd-ce", "apgd-t"),
}
ATTACKS_HELP = (
    f"comma-separated, of: {', '.join(ATTACK_NAMES)}; also {GRAMMAR}; or package.module:factory, an attack of your own"
)
_LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4, AUTOATTACK: 4}  # what the denominators of the DLR losses need


def read_names(text: str) -> tuple[str, ...]:
    """The names of a comma-separated list, each once; those with a colon are not looked up here.

    Raises:
        ValueError: none, or a name of no attack, with the nearest known one.
    """
    stripped = (name.strip() for name in text.split(",") if name.strip())
    names = tuple(dict.fromkeys(name if ":" in name else name.lower() for name in stripped))
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


def make_plan(names: Sequence[str], *, eps: float, norm: str, num_classes: int, levels: int = 255) -> list[Step]:
    """The attacks in the order given, without "clean" (which always comes first) and without duplicates.

    Args:
        names: of `ATTACK_NAMES`, or of `ard_fast.attacks.presets`, or `package.module:factory` (see `OwnAttack`).
        eps: radius.
        norm: "linf" or "l2".
        num_classes: of the model.
        levels: the uint8 value that stands for 1.0.

    Raises:
        ValueError: an unknown name, too few classes, no such attack in this norm or of images that are not of 8 bits,
            or `pyautoattack` is missing.
    """
    for name in names:
        standard = _read(name)
        if standard is not None and standard.norm not in (None, norm):
            raise ValueError(
                f"attacks: {name} works in the {standard.norm} ball, but eps {eps:g} is a radius of the {norm} ball; "
                f"evaluate with --norm {standard.norm} and an --eps of its own"
            )
        if standard is not None and standard.levels not in (None, levels):
            raise ValueError(
                f"attacks: {name} needs images of 8 bits, levels 0 to 255, but this data set has levels 0 to {levels}: "
                f"use {name.removesuffix('-8bit')}"
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


def transferred(steps: Sequence[Step], source: str) -> list[Step]:
    """The same attacks on another network, which has that name.

    APGD then goes on with images that it has fooled already: a point further behind the boundary of the network that
    is attacked is likelier to fool another one.
    """
    return [
        Step(
            f"{step.name} from {source}",
            tuple(
                (
                    name if len(step.stages) > 1 else f"{name} from {source}",
                    attack.replace(drop_every=0) if isinstance(attack, APGD) else attack,
                )
                for name, attack in step.stages
            ),
            source,
        )
        for step in steps
    ]


def curve_attack(names: Sequence[str], *, norm: str) -> tuple[str, Callable[[float], Attack]]:
    """The attack of the curve over eps: APGD-CE (no step size to choose) if it is run anyway, else PGD-20."""
    name = "apgd-ce" if {"apgd-ce", AUTOATTACK} & set(names) else "pgd20"
    return name, lambda eps: make(name, eps, norm)


def _make_attack(name: str, eps: float, norm: str, num_classes: int) -> Attack:
    if ":" in name:
        return OwnAttack(name, eps, norm)
    return make(name, eps, norm, **{"targets": most_targets(num_classes)} if name == "fab-t" else {})


def _least_classes(name: str) -> int:
    standard = _read(name)
    return _LEAST_CLASSES.get(standard.kind if standard else name, 2)


def _read(name: str) -> Standard | None:
    """What a name says of a gradient attack; None for clean, FAB-T, Square, AutoAttack and an attack of one's own."""
    if ":" in name:
        return None
    try:
        standard = read_name(name)
    except ValueError as error:
        raise ValueError(f"attacks: {error}") from error
    if standard is None and name not in ATTACK_NAMES:
        raise ValueError(f"attacks: {unknown('attack', name, ATTACK_NAMES)}, and {GRAMMAR}")
    return standard


# ---- attacks of one's own -----------------------------------------------------------------------------------------


class AttackError(ValueError):
    """An attack of one's own fails, or does not return what an attack must."""


class OwnAttack:
    """An attack of one's own, its results checked.

    It is called as `attack(model, x, y)`, and with `seed` (int64 `[1]`) and `sample_ids` (int64 `[B]`) where it names
    them: images float32 `[B, C, H, W]` with pixels in [0, 1] and labels in, adversarial images out. The model is in
    eval mode without weight gradients, and must be left as it is; torch's generators are seeded before each call and
    restored after it.

    Args:
        path: `package.module:factory`, a function or class that is called with eps, and with `norm` where it names it,
            and returns the attack.
        eps: radius.
        norm: "linf" or "l2".

    Raises:
        ValueError: no such module or factory, or it fails or returns nothing that can be called.
    """

    def __init__(self, path: str, eps: float, norm: str) -> None:
        factory = find_object(path, "attacks")
        self.path, self.eps, self.norm = path, eps, norm
        try:
            self.attack = factory(eps, **named_only(factory, norm=norm))
        except Exception as error:  # the factory is somebody else's code
            raise ValueError(
                f"attacks: {path} must be a function or class that takes eps and returns the attack; {path}({eps:.4g}) "
                f"failed ({reason(error)})"
            ) from error
        if not callable(self.attack):
            raise ValueError(f"attacks: {path} must return an attack to be called, got {type(self.attack).__name__}")

    def __repr__(self) -> str:
        text = repr(self.attack)
        if " at 0x" in text:  # Python's own text for objects says nothing
            text = f"eps={self.eps:.6g}, norm={self.norm!r}"
        return f"custom attack {self.path}: {text}"

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: Tensor, sample_ids: Tensor) -> Tensor:
        keys: dict[str, Any] = named_only(self.attack, seed=seed.clone(), sample_ids=sample_ids.clone())
        before = _state(model)
        try:
            with torch.enable_grad(), torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):
                torch.manual_seed(int(seed))
                found = self.attack(model, x.clone(), y.clone(), **keys)
        except Interrupted:
            raise
        except Exception as error:
            raise AttackError(f"attacks: {self.path} failed on {len(x)} images ({reason(error)})") from error
        wrong = self._fault(found, x)
        if not wrong and _state(model) != before:
            wrong = (
                "the network as it was, got other weights, running statistics or modes; attack it in eval mode, and "
                "change a copy only"
            )
        if wrong:
            raise AttackError(f"attacks: {self.path}: expected {wrong}")
        return found.detach().clone()  # which is written to, and may be the attack's own

    def try_on(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        """Attack a few images, so that what is wrong is known before hours of other attacks.

        Raises:
            AttackError: the attack fails, or its result is not one.
        """
        ids = torch.arange(len(x), device=x.device)
        with evaluation_mode(model):
            self(model, x, y, seed=torch.zeros_like(ids[:1]), sample_ids=ids)

    def _fault(self, found: Any, x: Tensor) -> str:
        """What was expected of a result and what came; empty where nothing is wrong."""
        if not isinstance(found, Tensor):
            return f"a tensor of adversarial images, got {type(found).__name__}"
        for what in ("shape", "dtype", "device"):
            wanted, got = (getattr(part, what) for part in (x, found))
            if wanted != got:
                return f"images of the {what} of x, {_plain(wanted)}, got {_plain(got)}"
        broken = int((~found.isfinite()).flatten(1).any(1).sum())
        if broken:
            return f"finite images, got NaN or infinity in {broken} of {len(x)}"
        outside = int((~inside_ball(found, x, norm=self.norm, eps=self.eps)).sum())
        if outside:
            moved = (found - x).flatten(1).norm(p=float("inf") if self.norm == "linf" else 2, dim=1).max()
            return (
                f"images within eps {self.eps:.6g} of x ({self.norm}) and pixels in [0, 1], got {outside} of {len(x)} "
                f"outside (largest distance {moved:.6g}, pixels {found.min():.4g} to {found.max():.4g})"
            )
        return ""


def _state(model: nn.Module) -> list[Any]:
    """What changes when a network does: the counted writes to its tensors, and its modes."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        *((id(tensor), None if tensor.is_inference() else tensor._version) for tensor in tensors),
        *(module.training for module in model.modules()),
    ]


def _plain(value: Any) -> str:
    return str(list(value) if isinstance(value, torch.Size) else value)
