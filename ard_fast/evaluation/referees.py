"""The two attacks of AutoAttack that are not ours, from the package `pyautoattack` (optional extra `autoattack`).

AutoAttack's standard version (Croce & Hein, ICML 2020): APGD-CE, APGD-T on nine targets, FAB-T on nine targets, Square
with 5,000 queries. The first two are `ard_fast.attacks`; here are FAB-T (Croce & Hein, ICML 2020) and Square
(Andriushchenko, Croce, Flammarion, Hein; ECCV 2020), with the ensemble's own parameters.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

_NORM_NAMES = {"linf": "Linf", "l2": "L2"}
FAB_ITERATIONS, FAB_ALPHA_MAX, FAB_ETA, FAB_BETA = 100, 0.1, 1.05, 0.9
SQUARE_QUERIES, SQUARE_P_INIT = 5000, 0.8
MAX_TARGETS = 9


def require_pyautoattack(wanted_by: str) -> None:
    """Refuse early where the package is missing.

    Args:
        wanted_by: the attack that needs it.

    Raises:
        ValueError: says how to install it.
    """
    try:
        _module("fab_pt")
    except ImportError as error:
        raise ValueError(
            f"attacks: {wanted_by} needs the package pyautoattack (for FAB-T and Square): "
            f"pip install 'ard-fast[autoattack]', or leave it out ({error})"
        ) from error


def _module(name: str) -> Any:
    return importlib.import_module(f"pyautoattack.{name}")


class FABT:
    """FAB-T as AutoAttack runs it: 9 targets (fewer where there are fewer classes) x 100 iterations, 1 restart,
    alpha_max 0.1, eta 1.05, beta 0.9, start at the image. Nothing is random.

    Args:
        eps: radius; the minimal perturbation found counts where it is inside.
        norm: "linf" or "l2".
        num_classes: of the model.
        steps: iterations for each target.
    """

    def __init__(self, eps: float, norm: str, num_classes: int, steps: int = FAB_ITERATIONS) -> None:
        self.eps, self.norm, self.targets, self.steps = eps, norm, min(MAX_TARGETS, num_classes - 1), steps

    def __repr__(self) -> str:
        return (
            f"FABT(eps={self.eps!r}, norm={self.norm!r}, targets={self.targets}, steps={self.steps}, restarts=1, "
            f"alpha_max={FAB_ALPHA_MAX}, eta={FAB_ETA}, beta={FAB_BETA}, from='pyautoattack')"
        )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: Tensor, sample_ids: Tensor) -> Tensor:
        attack = _module("fab_pt").FABAttack_PT(
            model,
            norm=_NORM_NAMES[self.norm],
            n_restarts=1,
            n_iter=self.steps,
            eps=self.eps,
            alpha_max=FAB_ALPHA_MAX,
            eta=FAB_ETA,
            beta=FAB_BETA,
            seed=int(seed),
            targeted=True,
            device=x.device,
            n_target_classes=self.targets,
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

    def __init__(self, eps: float, norm: str, queries: int = SQUARE_QUERIES) -> None:
        self.eps, self.norm, self.queries = eps, norm, queries

    def __repr__(self) -> str:
        return (
            f"Square(eps={self.eps!r}, norm={self.norm!r}, queries={self.queries}, p_init={SQUARE_P_INIT}, "
            "loss='margin', restarts=1, from='pyautoattack')"
        )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: Tensor, sample_ids: Tensor) -> Tensor:
        attack = _module("square").SquareAttack(
            model,
            norm=_NORM_NAMES[self.norm],
            n_queries=self.queries,
            eps=self.eps,
            p_init=SQUARE_P_INIT,
            n_restarts=1,
            seed=int(seed),
            resc_schedule=False,
            device=x.device,
        )
        draw = attack.random_choice
        attack.random_choice = lambda shape: draw([1, *shape[1:]] if len(shape) == 4 else shape)
        with _own_random_state(x.device), torch.no_grad():
            return attack.perturb(x, y).detach()


def _own_random_state(device: torch.device) -> Any:
    """The package seeds torch's global generators; what they were comes back afterwards."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
