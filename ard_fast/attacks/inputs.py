"""Checks of what an attack is called with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ard_fast.attacks.base import GradientAttack


def check_images(x: Tensor) -> None:
    """Images `[B, ...]`, float32."""
    if x.dtype != torch.float32:
        raise TypeError(
            f"x must be float32, got {x.dtype}: iterates stay in full precision; for a half-precision model use "
            "torch.autocast or a model that casts its input"
        )
    if x.dim() < 2:
        raise ValueError(f"x must have shape [B, ...], got {tuple(x.shape)}")


def check_targets(
    attack: GradientAttack, y: Tensor | Callable | None, target_classes: Tensor | None, x: Tensor
) -> None:
    """Labels, target logits or a target model, and target classes, as the attack's loss needs them."""
    if y is None and attack.targeted:
        raise ValueError("y must be given for a targeted attack: it says where to move to")
    if isinstance(y, Tensor):
        _check_target_tensor(y, x, attack.loss_name)
    elif y is not None and not (attack.accepts_target_model and callable(y)):
        kinds = "target logits, a target model" if attack.accepts_target_model else "a tensor"
        raise TypeError(f"y must be {kinds}, or None for the model's own predictions, got {type(y).__name__}")
    if target_classes is None:
        return
    if not attack.takes_target_classes:
        raise ValueError(f"target_classes must be None for {attack!r}: they are for loss='dlr_targeted'")
    if target_classes.dtype != torch.int64:
        raise TypeError(f"target_classes must be int64, got {target_classes.dtype}")
    if target_classes.shape != x.shape[:1]:
        raise ValueError(f"target_classes must have shape [{x.shape[0]}], got {tuple(target_classes.shape)}")


def _check_target_tensor(y: Tensor, x: Tensor, loss: str) -> None:
    if loss == "kl":
        if not y.is_floating_point():
            raise TypeError(f"y must be target logits [B, C] for loss='kl', got {y.dtype}")
        expected, fits = f"[{x.shape[0]}, C]", y.dim() == 2
    else:
        if y.dtype != torch.int64:
            raise TypeError(f"y must be int64 labels for loss={loss!r}, got {y.dtype}")
        expected, fits = f"[{x.shape[0]}]", y.dim() == 1
    if not fits or y.shape[0] != x.shape[0]:
        raise ValueError(f"y must have shape {expected} for loss={loss!r}, got {tuple(y.shape)}")


def as_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask seen in the shape of the images."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, got {got}")
    if mask.device != x.device:
        raise ValueError(f"mask must be on the device of x, {x.device}, got {mask.device}")
    try:
        return mask.expand(x.shape)
    except RuntimeError:
        raise ValueError(f"mask must be broadcastable to {tuple(x.shape)}, got {tuple(mask.shape)}") from None
