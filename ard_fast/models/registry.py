"""Networks by name: our own, what `package.module:factory` makes, `timm:NAME` and `robustbench:NAME`."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ard_fast._names import GIVEN, find_object, named_only, nearest, unknown
from ard_fast.models.deepmind import DMPreActResNet18, DMWideResNet
from ard_fast.models.digits import DigitsNet
from ard_fast.models.mnist import MnistNet
from ard_fast.models.mobilenetv2 import MobileNetV2
from ard_fast.models.resnet import PreActResNet18, ResNet18
from ard_fast.models.wideresnet import WideResNet

_TIMM, ROBUSTBENCH = "timm", "robustbench"
_THREATS = {"linf": "Linf", "l2": "L2", "corruptions": "corruptions"}
_BENCHMARKS = {10: "cifar10", 100: "cifar100", 1000: "imagenet"}  # by the number of classes


@dataclass(frozen=True)
class ModelSpec:
    """How to build a network and which images it takes.

    Attributes:
        build: called as `build(num_classes=, in_channels=, **options)`.
        in_channels: the channel count its images have by default.
        image_size: the height and width it needs, or None when any multiple of 8 will do.
        options: keyword arguments given to `build` unless the caller gives others.
    """

    build: Callable[..., nn.Module]
    in_channels: int = 3
    image_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


MODELS: dict[str, ModelSpec] = {
    "mobilenetv2": ModelSpec(MobileNetV2),
    "mobilenetv2-tiny": ModelSpec(MobileNetV2, options={"width": 0.25}),
    "resnet18": ModelSpec(ResNet18),
    "resnet18-narrow": ModelSpec(ResNet18, options={"width": 16}),
    "resnet18-tiny": ModelSpec(ResNet18, options={"width": 8}),
    "preactresnet18": ModelSpec(PreActResNet18),
    "preactresnet18-fast": ModelSpec(PreActResNet18, options={"activated_shortcut": False, "final_bn": False}),
    "wrn-28-10": ModelSpec(WideResNet, options={"depth": 28, "widen": 10}),
    "wrn-34-10": ModelSpec(WideResNet, options={"depth": 34, "widen": 10}),
    "wrn-34-20": ModelSpec(WideResNet, options={"depth": 34, "widen": 20}),
    "wrn-70-16": ModelSpec(WideResNet, options={"depth": 70, "widen": 16}),
    "dm-preactresnet18": ModelSpec(DMPreActResNet18),
    "dm-wrn-28-10": ModelSpec(DMWideResNet, options={"depth": 28, "widen": 10}),
    "dm-wrn-34-10": ModelSpec(DMWideResNet, options={"depth": 34, "widen": 10}),
    "dm-wrn-34-20": ModelSpec(DMWideResNet, options={"depth": 34, "widen": 20}),
    "dm-wrn-70-16": ModelSpec(DMWideResNet, options={"depth": 70, "widen": 16}),
    "digits-teacher": ModelSpec(DigitsNet, in_channels=1, image_size=8, options={"width": 16, "hidden": 64}),
    "digits-student": ModelSpec(DigitsNet, in_channels=1, image_size=8, options={"width": 8, "hidden": 0}),
    "mnist-teacher": ModelSpec(
        MnistNet, in_channels=1, image_size=28, options={"widths": (32, 64), "kernel": 5, "hidden": 1024}
    ),
    "mnist-student": ModelSpec(MnistNet, in_channels=1, image_size=28),
}


def find_model(name: str, *, argument: str = "model") -> ModelSpec:
    """How to build the network of a name: a key of `MODELS`, `timm:NAME`, `robustbench:NAME` or
    `package.module:factory`.

    A factory's module is imported here, which runs its code; nothing is built or downloaded.

    Args:
        name: one of these.
        argument: what errors call it.

    Raises:
        ValueError: an unknown name (with the nearest known one), or no such module, factory or timm network.
    """
    if name in MODELS:
        return MODELS[name]
    if ":" in name:
        return ModelSpec(_find_factory(name, argument))
    raise ValueError(f"{unknown(argument, name, MODELS)}, timm:NAME, robustbench:NAME, package.module:factory")


def build_model(
    name: str, num_classes: int = 10, in_channels: int | None = None, *, argument: str = "model", **options: Any
) -> nn.Module:
    """A freshly initialised network; its weights follow torch's global random state.

    Args:
        name: a key of `MODELS`, `timm:NAME` or `package.module:factory`; or `robustbench:NAME` or
            `robustbench:DATASET/THREAT/NAME`, a trained network, which robustbench downloads to its folder `./models`.
        num_classes: the number of logits.
        in_channels: the channels of its images; None takes the network's own (3 for CIFAR, 1 for digits).
        argument: what errors call `name`.
        **options: what the network itself takes, for example `width=32` for "resnet18".

    Raises:
        ValueError: an unknown name (with the nearest known one), a factory that fails, or fewer than two classes.
        TypeError: an option that a network of `MODELS` does not take.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    spec = find_model(name, argument=argument)
    channels = spec.in_channels if in_channels is None else in_channels
    return spec.build(num_classes=num_classes, in_channels=channels, **{**spec.options, **options})


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of a network (buffers such as batch-norm statistics not counted)."""
    return sum(parameter.numel() for parameter in model.parameters())


# ---- networks that are not ours ------------------------------------------------------------------------------------


def _find_factory(path: str, argument: str) -> Callable[..., nn.Module]:
    """A builder, called as `build(num_classes=, in_channels=, **options)`, for a path with a colon.

    The factory (or network class) is given `num_classes` and `in_channels` where it names such parameters, and the
    options; a path that leads to a module that was made already gives a copy of it, so that runs do not share weights.
    """
    package, _, name = path.partition(":")
    if package == _TIMM:
        return _timm_factory(name, argument)
    if package == ROBUSTBENCH:
        return _robustbench_factory(name, argument)
    if package == GIVEN:  # of a finished run's description, the object may be gone
        return lambda **_: copy.deepcopy(find_object(path, argument))
    factory = find_object(path, argument)
    if not isinstance(factory, nn.Module) and not callable(factory):
        raise ValueError(f"{argument}: {path} must be a function or a network, got {type(factory).__name__}")

    def build(*, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
        if isinstance(factory, nn.Module):
            return copy.deepcopy(factory)
        fitting = named_only(factory, num_classes=num_classes, in_channels=in_channels)
        return _make(lambda: factory(**fitting, **options), path, argument)

    return build


def _timm_factory(name: str, argument: str) -> Callable[..., nn.Module]:
    try:
        timm = importlib.import_module(_TIMM)
    except ModuleNotFoundError as error:
        raise ValueError(f"{argument}: {_TIMM}:{name} needs timm (pip install timm): {error}") from error
    except Exception as error:  # a torchvision that was built for another torch fails in its own ways
        raise ValueError(f"{argument}: timm is installed but fails ({type(error).__name__}: {error})") from error
    if not timm.is_model(name):  # also keeps out the names by which timm would download weights
        near = nearest(name, timm.list_models())
        raise ValueError(f"{argument}: timm has no network {name!r}{f'; did you mean {_TIMM}:{near}?' if near else ''}")

    def build(*, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
        settings = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels, **options}
        return _make(lambda: timm.create_model(name, **settings), f"{_TIMM}:{name}", argument)

    return build


def _robustbench_factory(path: str, argument: str) -> Callable[..., nn.Module]:
    if importlib.util.find_spec(ROBUSTBENCH) is None:
        raise ValueError(f"{argument}: {ROBUSTBENCH}:{path} needs robustbench (pip install robustbench)")
    *benchmark, name = path.split("/")
    if benchmark and not (
        len(benchmark) == 2 and benchmark[0] in _BENCHMARKS.values() and benchmark[1].lower() in _THREATS
    ):
        raise ValueError(
            f"{argument}: expected {ROBUSTBENCH}:NAME or {ROBUSTBENCH}:DATASET/THREAT/NAME with dataset "
            f"{', '.join(_BENCHMARKS.values())} and threat {', '.join(_THREATS.values())}, got {path!r}"
        )

    def build(*, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
        dataset, threat = benchmark or (_BENCHMARKS.get(num_classes), "linf")
        if dataset is None:
            raise ValueError(
                f"{argument}: no benchmark has {num_classes} classes; name {ROBUSTBENCH}:DATASET/THREAT/{name}"
            )
        settings = {"model_name": name, "dataset": dataset, "threat_model": _THREATS[threat.lower()], **options}

        def load() -> nn.Module:
            try:
                return importlib.import_module(f"{ROBUSTBENCH}.utils").load_model(**settings)
            except KeyError as error:
                raise ValueError(f"no such network of {dataset}; https://robustbench.github.io lists them") from error

        return _make(load, f"{ROBUSTBENCH}:{path}", argument)

    return build


def _make(make: Callable[[], Any], path: str, argument: str) -> nn.Module:
    try:
        network = make()
    except Exception as error:  # the factory is somebody else's code
        raise ValueError(f"{argument}: {path}() failed ({type(error).__name__}: {error})") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{argument}: {path}() must return a torch.nn.Module, got {type(network).__name__}")
    return network
