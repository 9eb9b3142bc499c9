"""Attacks of this package and of its peers under one call, each made and called as its own users do it.

The peers are optional. What their attacks here need of their packages comes without their dependencies on old torch:

    pip install --no-deps torchattacks==3.5.1 pyautoattack==0.2.0 foolbox==3.3.4 eagerpy==0.30.0
    pip install requests GitPython   # imported by torchattacks and foolbox

All attack a network in eval mode with images in [0, 1]. Nothing is done for or against a peer: parameters that require
a gradient stay so, because that is how a user's network comes, and construction is outside of what is timed or counted.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Attack = Callable[[Tensor, Tensor], Tensor]
"""From images [B, ...] and labels [B] to adversarial images [B, ...]."""

OURS = "ard_fast"
DISTRIBUTIONS = {
    OURS: "ard-fast",
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "pyautoattack": "pyautoattack",
}

OFFERED: dict[str, tuple[str, ...]] = {
    "pgd": (OURS, "torchattacks", "foolbox"),
    "pgd-l2": (OURS, "torchattacks", "foolbox"),
    "mifgsm": (OURS, "torchattacks"),
    "apgd-ce": (OURS, "pyautoattack"),
    "apgd-ce-l2": (OURS, "pyautoattack"),
    "apgd-dlr": (OURS, "pyautoattack"),
}
"""Which packages have which attack in the same form; foolbox's MI-FGSM accumulates signs, so it is another attack."""

PUBLISHED_STEPS = {"pgd": 20, "pgd-l2": 20, "mifgsm": 20, "apgd-ce": 100, "apgd-ce-l2": 100, "apgd-dlr": 100}
"""Steps of the evaluations that use these attacks."""


@dataclass(frozen=True)
class Setting:
    """One attack as all packages are given it.

    Attributes:
        attack: A key of `OFFERED`.
        eps: Radius of the ball, of images in [0, 1].
        step_size: Likewise; not used by APGD, which chooses its own.
        steps: Gradient steps.
    """

    attack: str
    eps: float
    step_size: float
    steps: int


def version(package: str) -> str:
    """Returns the installed version of `package`.

    Raises:
        importlib.metadata.PackageNotFoundError: If it is not installed.
    """
    return importlib.metadata.version(DISTRIBUTIONS[package])


def make_attack(package: str, setting: Setting, model: nn.Module, *, drop: bool = False) -> Attack:
    """Returns the attack of `package` on `model`, which is in eval mode.

    Args:
        package: A key of `DISTRIBUTIONS`.
        setting: The attack.
        model: What is attacked.
        drop: Our APGD as the evaluation runs it: samples that are fooled leave the run.

    Raises:
        ImportError: If the package, or something it imports, is not installed.
        ValueError: If the package does not offer the attack.
    """
    if package not in OFFERED[setting.attack]:
        raise ValueError(f"package: {setting.attack} is offered by {OFFERED[setting.attack]}, got {package!r}")
    if package == OURS:
        return _ours(setting, model, drop)
    return {
        "torchattacks": _torchattacks,
        "foolbox": _foolbox,
        "pyautoattack": _pyautoattack,
    }[package](setting, model)


def _ours(s: Setting, model: nn.Module, drop: bool) -> Attack:
    from ard_fast import attacks

    if s.attack == "pgd":
        attack = attacks.PGD(eps=s.eps, step_size=s.step_size, steps=s.steps)
    elif s.attack == "pgd-l2":
        attack = attacks.PGD(eps=s.eps, step_size=s.step_size, steps=s.steps, norm="l2")
    elif s.attack == "mifgsm":
        attack = attacks.MIFGSM(eps=s.eps, step_size=s.step_size, steps=s.steps, decay=1.0)
    else:
        attack = attacks.APGD(
            eps=s.eps,
            steps=s.steps,
            norm="l2" if s.attack.endswith("-l2") else "linf",
            loss="dlr" if "-dlr" in s.attack else "ce",
            drop_every=5 if drop else 0,
        )
    return lambda x, y: attack(model, x, y)


def _torchattacks(s: Setting, model: nn.Module) -> Attack:
    import torchattacks

    if s.attack == "pgd":
        return torchattacks.PGD(model, eps=s.eps, alpha=s.step_size, steps=s.steps, random_start=True)
    if s.attack == "pgd-l2":
        return torchattacks.PGDL2(model, eps=s.eps, alpha=s.step_size, steps=s.steps, random_start=True)
    return torchattacks.MIFGSM(model, eps=s.eps, alpha=s.step_size, steps=s.steps, decay=1.0)


def _foolbox(s: Setting, model: nn.Module) -> Attack:
    import foolbox

    device = next(model.parameters()).device
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=device)
    form = foolbox.attacks.L2PGD if s.attack.endswith("-l2") else foolbox.attacks.LinfPGD
    attack = form(abs_stepsize=s.step_size, steps=s.steps, random_start=True)

    def call(x: Tensor, y: Tensor) -> Tensor:
        _raw, clipped, _success = attack(wrapped, x, y, epsilons=s.eps)
        return clipped

    return call


def _pyautoattack(s: Setting, model: nn.Module) -> Attack:
    from pyautoattack.autopgd_base import APGDAttack

    return APGDAttack(
        model,
        n_iter=s.steps,
        norm="L2" if s.attack.endswith("-l2") else "Linf",
        eps=s.eps,
        seed=0,
        loss="dlr" if "-dlr" in s.attack else "ce",
        device=next(model.parameters()).device,
    ).perturb
