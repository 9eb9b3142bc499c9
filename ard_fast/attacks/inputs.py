"""Checks of what an attack is called with, and of what the model returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_images(x: Tensor, name: str = "x") -> None:
    """Images `[B, ...]`, float32."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor [B, ...], got {type(x).__name__}")
    if x.dtype != torch.float32:
        hint = f"give {name}.float()"
        if x.dtype == torch.uint8:
            hint = f"for pixels of 0 to 255 give {name}.float() / 255"
        elif x.dtype in (torch.float16, torch.bfloat16):
            hint = f"iterates stay in full precision: {hint}; for a half-precision model use torch.autocast"
        raise TypeError(f"{name} must be float32, got {x.dtype}: {hint}")
    if x.dim() < 2:
        raise ValueError(f"{name} must have shape [B, ...], got {tuple(x.shape)}")


def check_integers(value: object, name: str, x: Tensor) -> None:
    """int64 `[B]`, on the device of x."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be int64, got {got}")
    _check_device(value, name, x)
    if value.shape != x.shape[:1]:
        raise ValueError(f"{name} must have shape [{x.shape[0]}], got {tuple(value.shape)}")


def check_targets(y: Any, x: Tensor, loss: str = "ce", name: str = "y", model_allowed: bool = False) -> None:
    """Labels, int64 `[B]`, for the loss "kl" target logits `[B, C]`, or None; a target model where that is allowed."""
    if y is None or (model_allowed and callable(y) and not isinstance(y, (Tensor, type))):
        return
    if not isinstance(y, Tensor):
        kinds = "target logits, a target model" if model_allowed else "a tensor"
        raise TypeError(
            f"{name} must be {kinds}, or None for the model's own predictions, got {type(y).__name__}{_if_single(x, y)}"
        )
    _check_device(y, name, x)
    if loss == "kl":
        kind, expected, dims, fits = "target logits [B, C]", f"[{x.shape[0]}, C]", 2, y.is_floating_point()
    else:
        kind, expected, dims, fits = "int64 labels", f"[{x.shape[0]}]", 1, y.dtype == torch.int64
    if not fits:
        raise TypeError(f"{name} must be {kind} for loss={loss!r}, got {y.dtype}")
    if y.dim() != dims or y.shape[0] != x.shape[0]:
        got = f"{tuple(y.shape)}{_if_single(x, y)}"
        raise ValueError(f"{name} must have shape {expected} for loss={loss!r}, got {got}")


def as_mask(mask: Tensor | None, x: Tensor) -> Tensor | None:
    """The mask seen in the shape of the images."""
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a bool tensor, got {got}")
    _check_device(mask, "mask", x)
    try:
        return mask.expand(x.shape)
    except RuntimeError:
        raise ValueError(f"mask must be broadcastable to {tuple(x.shape)}, got {tuple(mask.shape)}") from None


def check_labels(y: Tensor, logits: Tensor, name: str = "y") -> None:
    """Labels in [0, C), looked at on the CPU only: elsewhere it would wait for the device."""
    classes = logits.shape[1]
    if y.device.type == "cpu" and not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(f"{name} must be labels in [0, {classes}), the classes of the model, got {y.tolist()[:8]}")


_LEAST_CLASSES = {"dlr": (3, "DLR"), "dlr_targeted": (4, "targeted DLR")}


def check_logits(logits: Tensor, x: Tensor, *losses: str) -> None:
    """What a model returned for `x`: real numbers `[B, C]` on its device, C as large as all the losses need."""
    fits = isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[0] == x.shape[0]
    if not fits or logits.shape[1] < 2:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        classes = "C], C >= 2" if fits else "C]"
        hint = _how_to_wrap(logits, x)
        raise ValueError(f"model must return logits of shape [{x.shape[0]}, {classes}, got {got}{hint}")
    if not logits.is_floating_point():
        raise ValueError(f"model must return logits of a floating dtype, got {logits.dtype}")
    if logits.device != x.device:
        raise ValueError(f"model must return logits on the device of x, {x.device}, got {logits.device}")
    for loss in losses:
        least, name = _LEAST_CLASSES.get(loss, (2, ""))
        if logits.shape[1] < least:
            other = "APGD(loss='dlr')" if logits.shape[1] == 3 else "PGD(loss='margin')"
            raise ValueError(
                f"model must have at least {least} classes for the {name} loss, got {logits.shape[1]}: use "
                f"InTurn([APGD(loss='ce'), {other}])"
            )


def _how_to_wrap(output: Any, x: Tensor) -> str:
    """What to add to a complaint about a model's output: the callable to give the attack instead."""
    if isinstance(output, Tensor):
        if output.shape in ((len(x),), (len(x), 1)):
            join = "stack" if output.dim() == 1 else "cat"
            two = f"torch.{join}([torch.zeros_like(z), z], 1)"
            return f"; for a binary classifier whose one logit is z give a model that returns {two}"
        if output.dim() > 2 and len(output) == len(x) and output[0].numel() == output.shape[1]:
            return "; give lambda x: model(x).flatten(1)"
        return "; x looks like a single image: use x[None]" if x.dim() == 3 and output.dim() == 1 else ""
    if isinstance(output, Mapping):
        parts = {f"[{key!r}]": part for key, part in output.items()}
    elif isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        parts = {f"[{i}]": part for i, part in enumerate(output)}
    else:
        names = getattr(output, "_fields", getattr(output, "__dict__", ()))
        parts = {f".{name}": getattr(output, name) for name in names}
    fitting = [access for access, part in parts.items() if isinstance(part, Tensor) and part.shape[:1] == x.shape[:1]]
    if not fitting:
        return "; give a callable that returns the logits alone"
    return f"; give lambda x: model(x){next((access for access in fitting if 'logits' in access), fitting[0])}"


def _check_device(tensor: Tensor, name: str, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")


def _if_single(x: Tensor, y: object) -> str:
    """What to add to a complaint about labels that do not fit, if `x` may be an image without a batch.

    Only then: images `[B, H, W]` without channels are as good as others.
    """
    labels = y.numel() if isinstance(y, Tensor) else 1 if isinstance(y, int) else 0
    if x.dim() != 3 or labels != 1:
        return ""
    return f"; x {tuple(x.shape)} looks like a single image: use x[None] and y of shape [1]"
