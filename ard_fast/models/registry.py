"""Networks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ard_fast.models.digits import DigitsNet
from ard_fast.models.mobilenetv2 import MobileNetV2
from ard_fast.models.resnet import ResNet18
from ard_fast.models.wideresnet import WideResNet
from ard_fast.names import unknown


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
    "wrn-34-10": ModelSpec(WideResNet, options={"depth": 34, "widen": 10}),
    "digits-teacher": ModelSpec(DigitsNet, in_channels=1, image_size=8, options={"width": 16, "hidden": 64}),
    "digits-student": ModelSpec(DigitsNet, in_channels=1, image_size=8, options={"width": 8, "hidden": 0}),
}


def build_model(name: str, num_classes: int = 10, in_channels: int | None = None, **options: Any) -> nn.Module:
    """A freshly initialised network; its weights follow torch's global random state.

    Args:
        name: a key of `MODELS`.
        num_classes: the number of logits.
        in_channels: the channels of its images; None takes the network's own (3 for CIFAR, 1 for digits).
        **options: what the network itself takes, for example `width=32` for "resnet18".

    Raises:
        ValueError: an unknown name (with the nearest known one), or fewer than two classes.
        TypeError: an option that the network does not take.
    """
    if name not in MODELS:
        raise ValueError(unknown("model", name, MODELS))
    if num_classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {num_classes}")
    spec = MODELS[name]
    channels = spec.in_channels if in_channels is None else in_channels
    return spec.build(num_classes=num_classes, in_channels=channels, **{**spec.options, **options})


def count_parameters(model: nn.Module) -> int:
    """The number of parameters of a network (buffers such as batch-norm statistics not counted)."""
    return sum(parameter.numel() for parameter in model.parameters())
