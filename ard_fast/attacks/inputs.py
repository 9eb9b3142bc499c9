"""Checks of what an attack is called with."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ard_fast.attacks.modules import is_fixed
from ard_fast.attacks.settings import Configured
from ard_fast.functional._bounds import check_precondition

if TYPE_CHECKING:
    from ard_fast.attacks.base import GradientAttack


def check_model(model: Callable[..., Any]) -> None:
    """Anything that can be called; what it returns is checked when it has."""
    if not callable(model) or isinstance(model, (type, Configured)):
        got = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise TypeError(f"model must map images to logits, got {got}")


def check_sample_ids(sample_ids: Tensor | None, x: Tensor) -> None:
    """int64 `[B]`, or None."""
    if sample_ids is not None:
        _check_integers(sample_ids, "sample_ids", x)


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


_LEAST_CLASSES = {"dlr": (3, "DLR"), "dlr_targeted": (4, "targeted DLR")}


def _how_to_wrap(output: Any, x: Tensor) -> str:
    """What to add to a complaint about a model's output: the callable to give the attack instead."""
    if isinstance(output, Tensor):
        z, batch = tuple(output.shape), x.shape[0]
        if z in ((batch,), (batch, 1)):
            join = "stack" if len(z) == 1 else "cat"
            two = f"torch.{join}([torch.zeros_like(z), z], 1)"
            return f"; for a binary classifier whose one logit is z give a model that returns {two}"
        if len(z) > 2 and z[0] == batch and output[0].numel() == z[1]:
            return "; give lambda x: model(x).flatten(1)"
        return "; x looks like a single image: use x[None]" if x.dim() == 3 and len(z) == 1 else ""
    parts: list[tuple[str, Any]] = []
    if isinstance(output, Mapping):
        parts = [(f"[{key!r}]", value) for key, value in output.items()]
    elif isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", None)
        parts = [(f"[{i}]" if names is None else f".{names[i]}", value) for i, value in enumerate(output)]
    elif hasattr(output, "__dict__"):
        parts = [(f".{name}", value) for name, value in vars(output).items()]
    fitting = [access for access, value in parts if isinstance(value, Tensor) and value.shape[:1] == x.shape[:1]]
    if not fitting:
        return "; give a callable that returns the logits alone"
    named = [access for access in fitting if "logits" in access]
    return f"; give lambda x: model(x){(named or fitting)[0]}"


def check_labels(y: Tensor, logits: Tensor, name: str = "y") -> None:
    """Labels in [0, C), looked at on the CPU only: elsewhere it would wait for the device."""
    classes = logits.shape[1]
    if y.device.type == "cpu" and not bool(((y >= 0) & (y < classes)).all()):
        raise ValueError(f"{name} must be labels in [0, {classes}), the classes of the model, got {y.tolist()[:8]}")


def check_sizes(settings: Mapping[str, object], x: Tensor) -> None:
    """Of an attack's arguments, those that are tensors: one number, or one for each image."""
    for name, value in settings.items():
        if isinstance(value, Tensor) and value.dim() and value.shape != x.shape[:1]:
            raise RuntimeError(f"{name} must be a number or have shape [{x.shape[0]}], got {tuple(value.shape)}")


def check_images(x: Tensor, name: str = "x") -> None:
    """Images `[B, ...]`, float32."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor [B, ...], got {type(x).__name__}")
    if x.dtype != torch.float32:
        raise TypeError(f"{name} must be float32, got {x.dtype}: {_how_to_convert(x.dtype, name)}")
    if x.dim() < 2:
        raise ValueError(f"{name} must have shape [B, ...], got {tuple(x.shape)}")


def _how_to_convert(dtype: torch.dtype, name: str) -> str:
    if dtype == torch.uint8:
        return f"for pixels of 0 to 255 give {name}.float() / 255"
    if dtype in (torch.float16, torch.bfloat16):
        return (
            f"iterates stay in full precision: give {name}.float(); for a half-precision model use torch.autocast or a "
            "model that casts its input"
        )
    return f"give {name}.float()"


def check_pixels(attack: GradientAttack, x: Tensor) -> None:
    """Pixels inside the attack's bounds, and a ball no wider.

    Looked at in every call on the CPU. On CUDA that waits for the device, so it is done in the first call of this
    attack object for a shape and bounds, never inside the capture of a graph or where torch is told to raise on waits.
    """
    if x.device.type != "cuda":
        check_precondition(x, attack.eps, attack.bounds, attack.norm)
        return
    kinds = _ONCE.setdefault(attack, set())
    kind = x.shape[1:], attack.bounds
    may_wait = torch.cuda.get_sync_debug_mode() < 2 and not torch.cuda.is_current_stream_capturing()  # 2: "error"
    if kind not in kinds and may_wait:
        check_precondition(x, attack.eps, attack.bounds, attack.norm)
        kinds.add(kind)


_ONCE: WeakKeyDictionary[GradientAttack, set[Hashable]] = WeakKeyDictionary()
"""What is not done again for an attack: kinds of images on CUDA that were inside the bounds, warnings."""


def say_unseen(attack: GradientAttack, model: Callable[..., Any], bn: str, name: str = "model") -> bool:
    """Warn, once for an attack and a type of callable, that no module was found behind the model or target model.

    Returns:
        Whether there is nothing to warn of: a callable that says what it reads has no modes.
    """
    kind = type(model)
    said = _ONCE.setdefault(attack, set())
    if is_fixed(model) or kind in said:
        return is_fixed(model)
    said.add(kind)
    found = model.__qualname__ if isinstance(model, (FunctionType, MethodType)) else kind.__qualname__
    warnings.warn(
        f"bn={bn!r} cannot be applied: no torch.nn.Module was found behind the {name}, {found}. If it uses one, "
        "batch norm and dropout stay as they are and running statistics may move: pass the module, or a "
        "torch.nn.Module around it",
        stacklevel=3,
    )
    return False


def check_targets(
    attack: GradientAttack, y: Tensor | Callable[..., Any] | None, target_classes: Tensor | None, x: Tensor
) -> None:
    """Labels, target logits or a target model, and target classes, as the attack's loss needs them."""
    if y is None and attack.targeted:
        raise ValueError("y must be given for a targeted attack: it says where to move to")
    if isinstance(y, Tensor):
        _check_target_tensor(y, x, attack.loss_name)
    elif y is not None and not (attack.accepts_target_model and callable(y) and not isinstance(y, type)):
        kinds = "target logits, a target model" if attack.accepts_target_model else "a tensor"
        raise TypeError(
            f"y must be {kinds}, or None for the model's own predictions, got {type(y).__name__}{_if_single(x, y)}"
        )
    if target_classes is None:
        return
    if not attack.takes_target_classes:
        raise ValueError(f"target_classes must be None for {attack!r}: they are for loss='dlr_targeted'")
    _check_integers(target_classes, "target_classes", x)


def _check_integers(value: object, name: str, x: Tensor) -> None:
    """int64 `[B]`, on the device of x."""
    if not isinstance(value, Tensor) or value.dtype != torch.int64:
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be int64, got {got}")
    _check_device(value, name, x)
    if value.shape != x.shape[:1]:
        raise ValueError(f"{name} must have shape [{x.shape[0]}], got {tuple(value.shape)}")


def _check_device(tensor: Tensor, name: str, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {tensor.device}")


def check_label_tensor(y: Tensor | None, x: Tensor, name: str = "y") -> None:
    """int64 `[B]`, or None."""
    if y is None:
        return
    if not isinstance(y, Tensor):
        raise TypeError(f"{name} must be a tensor, or None for the model's own predictions, got {type(y).__name__}")
    _check_target_tensor(y, x, "ce", name)


def _check_target_tensor(y: Tensor, x: Tensor, loss: str, name: str = "y") -> None:
    _check_device(y, name, x)
    if loss == "kl":
        if not y.is_floating_point():
            raise TypeError(f"{name} must be target logits [B, C] for loss='kl', got {y.dtype}")
        expected, fits = f"[{x.shape[0]}, C]", y.dim() == 2
    else:
        if y.dtype != torch.int64:
            raise TypeError(f"{name} must be int64 labels for loss={loss!r}, got {y.dtype}")
        expected, fits = f"[{x.shape[0]}]", y.dim() == 1
    if not fits or y.shape[0] != x.shape[0]:
        got = f"{tuple(y.shape)}{_if_single(x, y)}"
        raise ValueError(f"{name} must have shape {expected} for loss={loss!r}, got {got}")


def _if_single(x: Tensor, y: object) -> str:
    """What to add to a complaint about labels that do not fit, if `x` may be an image without a batch.

    Only then: images `[B, H, W]` without channels are as good as others.
    """
    labels = y.numel() if isinstance(y, Tensor) else 1 if isinstance(y, int) else 0
    if x.dim() != 3 or labels != 1:
        return ""
    return f"; x {tuple(x.shape)} looks like a single image: use x[None] and y of shape [1]"


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
