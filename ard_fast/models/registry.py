"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ard_fast._names import unknown
from ard_fast.models.deepmind import DMPreActResNet18, DMWideResNet
from ard_fast.models.digits import DigitsNet
from ard_fast.models.factories import find_factory
from ard_fast.models.mobilenetv2 import MobileNetV2
from ard_fast.models.preactresnet import PreActResNet18
from ard_fast.models.resnet import ResNet18
from ard_fast.models.wideresnet import WideResNet


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
}


def find_model(name: str, *, argument: str = "model") -> ModelSpec:
    """How to build the network of a name: a key of `MODELS`, `timm:NAME` or `package.module:factory`.

    A factory's module is imported here, which runs its code; nothing is built.

    Args:
        name: one of the three.
        argument: what errors call it.

    Raises:
        ValueError: an unknown name (with the nearest known one), or no such module, factory or timm network.
    """
    if name in MODELS:
        return MODELS[name]
    if ":" in name:
        return ModelSpec(find_factory(name, argument))
    raise ValueError(f"{unknown(argument, name, MODELS)}, timm:NAME, package.module:factory")


def build_model(
    name: str, num_classes: int = 10, in_channels: int | None = None, *, argument: str = "model", **options: Any
) -> nn.Module:
    """A freshly initialised network; its weights follow torch's global random state.

    Args:
        name: a key of `MODELS`, `timm:NAME` or `package.module:factory`.
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
