"""FAB-T and Square, the two attacks of AutoAttack's standard version that come from the package `pyautoattack`.

AutoAttack (Croce & Hein, ICML 2020): APGD-CE, APGD-T on nine targets, FAB-T on nine targets, Square with 5,000 queries.
The first two are `ard_fast.attacks`; FAB-T (Croce & Hein, ICML 2020) and Square (Andriushchenko, Croce, Flammarion,
Hein; ECCV 2020) run here with the ensemble's own parameters (optional extra `autoattack`).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ard_fast.attacks.foreign import Foreign
from ard_fast.attacks.settings import NORMS, Configured
from ard_fast.functional._arguments import nonnegative, one_of, positive_int

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
_NORM_NAMES = {"linf": "Linf", "l2": "L2"}
_FAB = {"n_restarts": 1, "alpha_max": 0.1, "eta": 1.05, "beta": 0.9}
_MAX_TARGETS = 9
_SQUARE = {"p_init": 0.8, "n_restarts": 1}

Self = TypeVar("Self", bound="_OfAutoAttack")


@dataclass(eq=False, repr=False)
class _OfAutoAttack(Foreign, Configured):
    eps: float
    norm: str = "linf"

    def __post_init__(self) -> None:
        self.eps, self.norm = nonnegative(self.eps, "eps"), one_of(self.norm, "norm", NORMS)

    def at_eps(self: Self, eps: float | Tensor, **changes: Any) -> Self:
        """The same attack at another radius."""
        return self.replace(eps=eps, **changes)

    def _own_seed(self) -> Tensor:
        return torch.randint(2**31, ())

    def _pixel_bounds(self) -> tuple[float, float]:
        return (0.0, 1.0)

    def _made(self, module: str, kind: str, model: nn.Module, x: Tensor, **settings: Any) -> Any:
        """The package's own object; it seeds torch's generators, which `Foreign` restores."""
        make, seed = getattr(pyautoattack(module), kind), torch.initial_seed()
        return make(model, norm=_NORM_NAMES[self.norm], eps=self.eps, seed=seed, device=x.device, **settings)


@dataclass(eq=False, repr=False)
class FABT(_OfAutoAttack):
    """FAB-T as AutoAttack runs it: 9 targets x 100 iterations, 1 restart, alpha_max 0.1, eta 1.05, beta 0.9, start at
    the image. Nothing is random.

    Args:
        eps: radius; the minimal perturbation found counts where it is inside.
        norm: "linf" or "l2".
        targets: target classes; None for 9, or all wrong classes of a model with fewer.
        steps: iterations for each target.
    """

    targets: int | None = None
    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int(self.steps, "steps")
        if self.targets is not None:
            positive_int(self.targets, "targets")

    def __repr__(self) -> str:
        return (
            f"FABT(eps={self.eps!r}, norm={self.norm!r}, targets={self.targets or _MAX_TARGETS}, steps={self.steps}, "
            f"restarts=1, alpha_max={_FAB['alpha_max']}, eta={_FAB['eta']}, beta={_FAB['beta']}, from='pyautoattack')"
        )

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        targets = self.targets
        if targets is None:
            with torch.no_grad():
                targets = most_targets(model(x[:1]).shape[1])
        attack = self._made(
            "fab_pt", "FABAttack_PT", model, x, n_iter=self.steps, targeted=True, n_target_classes=targets, **_FAB
        )
        return attack.perturb(x, y)


@dataclass(eq=False, repr=False)
class Square(_OfAutoAttack):
    """Square as AutoAttack runs it: 5,000 queries, p_init 0.8 halved on the fixed schedule, margin loss, 1 restart.

    The package draws the places of the squares once for a whole batch, but some signs for each image by its position
    in the batch, so that a result depends on the batch. Here those signs are drawn once for all images too: for a
    single image the distribution is the same, and its result depends on the seed only.

    Args:
        eps: radius.
        norm: "linf" or "l2".
        queries: most forward passes for an image.
    """

    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        positive_int(self.queries, "queries")

    def __repr__(self) -> str:
        return (
            f"Square(eps={self.eps!r}, norm={self.norm!r}, queries={self.queries}, p_init={_SQUARE['p_init']}, "
            "loss='margin', restarts=1, from='pyautoattack')"
        )

    def _run(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        attack = self._made("square", "SquareAttack", model, x, n_queries=self.queries, resc_schedule=False, **_SQUARE)
        draw = attack.random_choice
        attack.random_choice = lambda shape: draw([1, *shape[1:]] if len(shape) == 4 else shape)
        with torch.no_grad():
            return attack.perturb(x, y)


def most_targets(num_classes: int) -> int:
    """How many target classes AutoAttack takes in a model of so many classes."""
    return min(_MAX_TARGETS, num_classes - 1)


def require_pyautoattack(wanted_by: str) -> None:
    """Refuse early where the package is missing.

    Raises:
        ValueError: it is; the message names `wanted_by`.
    """
    try:
        pyautoattack("fab_pt")
    except ImportError as error:
        raise ValueError(
            f"{wanted_by} needs the package pyautoattack (for FAB-T and Square): "
            f"pip install 'ard-fast[autoattack]', or leave it out ({error})"
        ) from error


def pyautoattack(module: str) -> Any:
    """A module of the package."""
    return importlib.import_module(f"pyautoattack.{module}")
