"""Running somebody else's attack with the care that ours take: model and random state are as before afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from ard_fast.attacks.base import GradientAttack
from ard_fast.attacks.inputs import check_images, check_label_tensor
from ard_fast.attacks.model_state import attack_mode
from ard_fast.functional._arguments import seed_tensor
from ard_fast.functional._bounds import check_precondition


@contextmanager
def undisturbed(model: nn.Module, x: Tensor, seed: int | Tensor | None) -> Iterator[None]:
    """The model in eval mode with its parameters frozen, so that `.grad` is not written; random numbers from `seed`.

    Without a seed torch's global generators are used as the attack uses them. With one they are put back afterwards.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    devices = [x.device] if x.device.type == "cuda" else []
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        attack_mode(model, "eval"),
        torch.random.fork_rng(devices, enabled=seed is not None),
    ):
        try:
            for parameter in trainable:
                parameter.requires_grad_(False)
            if seed is not None:
                torch.manual_seed(int(seed))
            yield
        finally:
            for parameter in trainable:
                parameter.requires_grad_(True)


def check_attack(attack: GradientAttack) -> None:
    """One of ours."""
    if not isinstance(attack, GradientAttack):
        raise TypeError(f"attack must be a GradientAttack of ard_fast.attacks, got {type(attack).__name__}")


def check_foreign_call(
    model: nn.Module, x: Tensor, y: Tensor, seed: int | Tensor | None, bounds: tuple[float, float] | None
) -> None:
    """What somebody else's attack would fail at in its own way, or not notice. Waits for the device, as they do."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    check_images(x)
    if y is None:
        raise TypeError("y must be a tensor of labels [B], got None")
    check_label_tensor(y, x)
    if seed is not None and seed_tensor(seed, x.device).numel() != 1:
        raise ValueError(f"seed must have one element, got {list(cast('Tensor', seed).shape)}")
    if bounds is not None:
        check_precondition(x, 0.0, bounds, None)


def refuse_mask(mask: Tensor | None, attack: object) -> None:
    """Their attacks know no masks."""
    if mask is not None:
        raise ValueError(f"mask must be None: {type(attack).__name__} has no way to keep pixels as they are")
