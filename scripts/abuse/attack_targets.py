"""Every attack and adapter: constructed and called in one go, on a small network."""

from __future__ import annotations

import importlib.util
import inspect
import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from abuse.samples import BATCH, CLASSES, images, labels, maybe, normal
from abuse.target import Arguments, Target
from ard_fast import attacks
from ard_fast.attacks import adapters

# What must fit to what: if the first is changed, the complaint may be of the others; and what adapters call it.
_FITS = {
    "x": ("y", "sample_ids", "mask"),
    "y": ("labels", "model", "target"),
    "bounds": ("eps",),  # NFGSM's ball is as wide as they are
    "model": ("labels", "logits", "target"),
    "sample_ids": ("step_size",),
    "attacks_": ("attacks",),
    "criterion": ("y", "labels"),
    "inputs": ("x", "y", "labels"),
    "labels": ("y",),
    "epsilons": ("eps",),
}
_CALL = ("model", "x", "y", "seed", "sample_ids", "mask", "target_classes")
_FEW = {"steps": 2, "n_targets": 2}
_COUNTS = frozenset(("steps", "restarts", "eot", "n_targets"))
_CLASSES = ("PGD", "FGSM", "FGSMRS", "NFGSM", "MIFGSM", "CWLinf", "KLPGD", "APGD", "APGDT")


def network() -> nn.Module:
    """From images of `samples.SHAPE` to logits, with a batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(80, CLASSES)
    )


def _settings(kind: type, rng: random.Random) -> Arguments:
    """Some of the constructor's arguments at their defaults, with few steps."""
    known = {name: item.default for name, item in inspect.signature(kind.__init__).parameters.items() if name != "self"}
    given = {name: value for name, value in known.items() if rng.random() < 0.5}
    return {**given, **{name: value for name, value in _FEW.items() if name in known}}


def _call(rng: random.Random, kind: type) -> Arguments:
    found = {
        "model": network(),
        "x": images(rng),
        "y": normal(rng, BATCH, CLASSES) if kind is attacks.KLPGD else labels(rng),
        "seed": rng.choice((1, torch.tensor([1]))),
        "sample_ids": maybe(rng, torch.arange(BATCH)),
        "mask": maybe(rng, torch.ones(1, 1, 4, 5, dtype=torch.bool)),
        "target_classes": None,
    }
    if kind is attacks.APGDT:
        del found["target_classes"]
    return found


def _attack_target(kind: type, graphed: bool = False) -> Target:
    def arguments(rng: random.Random) -> Arguments:
        return {**_settings(kind, rng), **_call(rng, kind)}

    def call(**given: Any) -> Tensor:
        at_call = {name: given.pop(name) for name in _CALL if name in given}
        attack = kind(**given)
        return (attacks.GraphedPGD(attack) if graphed else attack)(**at_call)

    name = f"GraphedPGD({kind.__name__})" if graphed else kind.__name__
    return Target(f"attacks.{name}", call, arguments, _FITS, counts=_COUNTS)


def _in_turn(attacks_: Any, **given: Any) -> Tensor:
    return attacks.InTurn(attacks_)(**given)


def _preset(name: Any, eps: Any, steps: Any, model: Any, x: Any, y: Any) -> Tensor:
    changes = {} if steps is None else {"steps": steps}
    return attacks.preset(name, eps, **changes)(model, x, y)


def _standards(eps: Any, norm: Any) -> list[Any]:
    return [make(eps, norm=norm) for make in attacks.STANDARDS.values()]


def _attack_mode(model: Any, bn: Any) -> None:
    with attacks.attack_mode(model, bn):
        pass


def _differentiated(loss: Any, logits: Any) -> Any:
    return attacks.differentiated(loss, logits)


def _graphed(attack: Any, warm_up: Any) -> Any:
    return attacks.GraphedPGD(attack, warm_up=warm_up)


def _torchattacks(model: Any, attack: Any, inputs: Any, labels: Any, mean: Any, std: Any, kth_min: Any) -> Tensor:
    adapter = adapters.TorchattacksAdapter(model, attack)
    adapter.set_normalization_used(mean, std)
    adapter.set_mode_targeted_least_likely(kth_min, quiet=True)
    return adapter(inputs, labels)


class _BoundedModel:
    """What the foolbox adapter needs of a `foolbox.PyTorchModel`."""

    bounds = (0.0, 1.0)

    def __init__(self) -> None:
        self._network = network().eval()

    def __call__(self, x: Tensor) -> Tensor:
        return self._network(x)


def _foolbox(attack: Any, model: Any, inputs: Any, criterion: Any, epsilons: Any) -> Any:
    return adapters.FoolboxAdapter(attack)(model, inputs, criterion, epsilons=epsilons)


def _pgd(rng: random.Random) -> attacks.PGD:
    return attacks.PGD(steps=2, random_start=rng.random() < 0.5)


def _others() -> dict[str, tuple[Callable[..., Any], Callable[[random.Random], Arguments]]]:
    def with_batch(rng: random.Random) -> Arguments:
        return {"model": network(), "x": images(rng), "y": labels(rng)}

    def of_preset(rng: random.Random) -> Arguments:
        return {"name": rng.choice(("ard", "trades", "rslad")), "eps": 0.1, "steps": 1, **with_batch(rng), "y": None}

    def in_turn(rng: random.Random) -> Arguments:
        return {"attacks_": [_pgd(rng), attacks.FGSM()], **with_batch(rng), "seed": 1}

    return {
        "attacks.InTurn": (_in_turn, in_turn),
        "attacks.preset": (_preset, of_preset),
        "attacks.STANDARDS": (
            _standards,
            lambda rng: {"eps": 0.1, "norm": "linf"},
        ),
        "attacks.attack_mode": (_attack_mode, lambda rng: {"model": network(), "bn": "eval"}),
        "attacks.differentiated": (
            _differentiated,
            lambda rng: {"loss": lambda z: z.square().sum(1), "logits": normal(rng, BATCH, CLASSES)},
        ),
        "attacks.GraphedPGD": (_graphed, lambda rng: {"attack": _pgd(rng), "warm_up": 2}),
        "adapters.TorchattacksAdapter": (
            _torchattacks,
            lambda rng: {
                "model": network(),
                "attack": _pgd(rng),
                "inputs": images(rng),
                "labels": labels(rng),
                "mean": [0.5, 0.5],
                "std": [0.2, 0.2],
                "kth_min": 1,
            },
        ),
        "adapters.FoolboxAdapter": (
            _foolbox,
            lambda rng: {
                "attack": _pgd(rng),
                "model": _BoundedModel(),
                "inputs": images(rng),
                "criterion": labels(rng),
                "epsilons": rng.choice((0.1, [0.05, 0.1])),
            },
        ),
    }


def _from_foolbox(x: Any, y: Any, model: Any, eps: Any, bounds: Any, seed: Any, mask: Any) -> Tensor:
    import foolbox

    attack = foolbox.attacks.LinfPGD(steps=2)
    return adapters.FromFoolbox(attack, eps, bounds=bounds)(model, x, y, seed=seed, mask=mask)


def _from_torchattacks(x: Any, y: Any, model: Any, seed: Any, mask: Any) -> Tensor:
    import torchattacks

    attack = torchattacks.PGD(network(), steps=2)
    return adapters.FromTorchattacks(attack)(model, x, y, seed=seed, mask=mask)


def _foreign() -> list[Target]:
    """The adapters of other packages' attacks, where those are installed."""

    def batch(rng: random.Random) -> Arguments:
        return {"x": images(rng), "y": labels(rng), "model": network(), "seed": 1, "mask": None}

    found = []
    if importlib.util.find_spec("foolbox"):
        more = {"eps": 0.1, "bounds": (0.0, 1.0)}
        found.append(Target("adapters.FromFoolbox", _from_foolbox, lambda rng: {**batch(rng), **more}, _FITS))
    if importlib.util.find_spec("torchattacks"):
        found.append(Target("adapters.FromTorchattacks", _from_torchattacks, batch, _FITS))
    return found


def targets() -> list[Target]:
    """All of them."""
    kinds = [getattr(attacks, name) for name in _CLASSES]
    found = [*map(_attack_target, kinds), _attack_target(attacks.PGD, graphed=True)]
    for name, (call, arguments) in _others().items():
        found.append(Target(name, call, arguments, _FITS, counts=_COUNTS))
    return [*found, *_foreign()]
