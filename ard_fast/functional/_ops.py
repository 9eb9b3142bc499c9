"""Handles of the compiled operators and their shape functions. Schemas: csrc/module.cpp."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ard_fast.functional._load import load

load()

pgd_linf_step_ = torch.ops.ard_fast.pgd_linf_step_.default
random_start = torch.ops.ard_fast.random_start.default
kd_loss = torch.ops.ard_fast.kd_loss.default
pair_loss = torch.ops.ard_fast.pair_loss.default
scale_rows_ = torch.ops.ard_fast.scale_rows_.default
attack_gradient = torch.ops.ard_fast.attack_gradient.default
pgd_l2_step_ = torch.ops.ard_fast.pgd_l2_step_.default
mifgsm_step_ = torch.ops.ard_fast.mifgsm_step_.default
apgd_step_ = torch.ops.ard_fast.apgd_step_.default
select_best_ = torch.ops.ard_fast.select_best_.default
crop_flip = torch.ops.ard_fast.crop_flip.default
fold_batch_norm_ = torch.ops.ard_fast.fold_batch_norm_.default
affine_relu = torch.ops.ard_fast.affine_relu.default
affine_relu_ = torch.ops.ard_fast.affine_relu_.default
affine_relu_backward = torch.ops.ard_fast.affine_relu_backward.default


def direct(operator: torch._ops.OpOverload) -> Callable[..., Any]:
    """What a call of the operator comes to, without the Python before it; Dynamo knows the operator alone."""
    return operator if torch.compiler.is_compiling() else operator._op


def _shapes_of(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the shape function of an operator.

    One tensor on the meta device is enough for torch to call it in the operator's place, so it is here that tensors of
    several devices are refused.
    """
    names = [argument.name for argument in getattr(torch.ops.ard_fast, name).default._schema.arguments]

    def register(shapes: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any) -> Any:
            _check_one_device(names, arguments)
            return shapes(*arguments)

        torch.library.register_fake(f"ard_fast::{name}", checked)
        return shapes

    return register


def _check_one_device(names: Iterable[str], arguments: Iterable[Any]) -> None:
    """All tensors, those in lists too, must be on the device of the first one.

    Raises:
        RuntimeError: names the first that is not.
    """
    first = None
    for name, value in zip(names, arguments, strict=False):  # torch leaves out arguments at their default
        for tensor in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(tensor, Tensor):
                continue
            first = first or (name, tensor.device)
            if tensor.device != first[1]:
                like = f"{first[0]} ({first[1]})"
                raise RuntimeError(f"ard_fast: {name} must be on the device of {like}, got {tensor.device}")


@_shapes_of("pgd_linf_step_")
@_shapes_of("pgd_l2_step_")
@_shapes_of("mifgsm_step_")
@_shapes_of("apgd_step_")
@_shapes_of("select_best_")
@_shapes_of("fold_batch_norm_")
@_shapes_of("scale_rows_")
def _(*_arguments) -> None:
    return None


@_shapes_of("random_start")
def _(x, eps_per_sample, eps, seed, sample_ids, normal, std, clamp, lower, upper, levels=0) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


def _rows(logits: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return logits.new_empty((logits.shape[0],), dtype=dtype)


def _loss(logits: Tensor, reduce: bool) -> Tensor:
    return logits.new_empty((), dtype=torch.float32) if reduce else _rows(logits)


def _gradients(logits: Tensor, wanted: Iterable[bool]) -> Iterator[Tensor | None]:
    return (logits.new_empty(logits.shape) if each else None for each in wanted)


@_shapes_of("kd_loss")
def _(
    student,
    teacher,
    clean,
    labels,
    weight,
    teacher_temperature_per_sample,
    clean_teacher_temperature_per_sample,
    temperature,
    teacher_temperature,
    clean_teacher_temperature,
    kl_weight,
    clean_weight,
    kl_grad_weight,
    clean_grad_weight,
    reduce,
    with_grad,
    with_teacher_grad,
    scaled=False,
) -> tuple[Tensor | None, ...]:
    grads = with_grad, with_grad and clean is not None, with_teacher_grad
    return _loss(student, reduce), *_gradients(student, grads), _rows(student) if scaled else None


@_shapes_of("pair_loss")
def _(
    adv, clean, labels, weight, mart, kl_weight, ce_weight, kl_grad_weight, ce_grad_weight, reduce, with_grad
) -> tuple[Tensor | None, ...]:
    return _loss(adv, reduce), *_gradients(adv, (with_grad, with_grad))


@_shapes_of("attack_gradient")
def _(
    logits, labels, loss, target_classes=None, kappa=50.0, with_rows=False, scaled=False
) -> tuple[Tensor | None, ...]:
    rows = (_rows(logits), _rows(logits, torch.bool)) if with_rows else (None, None)
    return logits.new_empty(logits.shape), *rows, _rows(logits) if scaled else None


@_shapes_of("crop_flip")
def _(
    images, positions, seed, ids, views, padding, flip, levels, channels_last, cropshift=0, cutout=0
) -> tuple[Tensor, Tensor]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (positions.shape[0], *images.shape[1:])
    x = torch.empty(shape, dtype=torch.float32, device=images.device, memory_format=layout)
    return x, positions.new_empty(positions.shape)


def _like(x: Tensor) -> Tensor:
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)


@_shapes_of("affine_relu_")
def _(x, scale, shift, residual, relu, mask) -> Tensor:
    return x.new_empty(((x.numel() + 7) // 8 if mask else 0,), dtype=torch.uint8)


@_shapes_of("affine_relu")
def _(x, scale, shift, residual, relu, mask) -> tuple[Tensor, Tensor]:
    return _like(x), x.new_empty(((x.numel() + 7) // 8 if mask else 0,), dtype=torch.uint8)


@_shapes_of("affine_relu_backward")
def _(grad, mask, scale) -> Tensor:
    return _like(grad)
