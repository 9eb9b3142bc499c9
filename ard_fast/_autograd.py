"""The autograd side of the losses over rows of logits: their gradients come out of the forward kernel.

The gradients leave the kernel with weights of their own, and `factors` are what the incoming gradient is multiplied by
on top of these (float16 gradients leave the kernel well inside their range and get their final size here).

The first backward scales the kernel's gradients in place and hands them on: with an incoming gradient of 1 and factors
of 1 the scaling kernel returns at once, so that a whole loss costs one pass over the logits. A second backward through
a retained graph computes them anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ard_fast import _ops

# The numbers that the operator takes after its tensors.
KdNumbers = tuple[float, float, float, float, float, float, float, bool, bool, bool]
PairNumbers = tuple[bool, float, float, float, float, bool, bool]


class KdLoss(torch.autograd.Function):
    """Loss, with gradients for the logits of the student and, where asked, of the teacher. See `_ops.kd_loss`.

    `factors` are those of the student's and the teacher's gradients and of the second student's.
    """

    @staticmethod
    def forward(
        student: Tensor,
        teacher: Tensor,
        clean: Tensor | None,
        labels: Tensor | None,
        weight: Tensor | None,
        teacher_temperature: Tensor | None,
        clean_teacher_temperature: Tensor | None,
        numbers: KdNumbers,
        factors: tuple[float, float],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        temperatures = teacher_temperature, clean_teacher_temperature
        return _ops.kd_loss(student, teacher, clean, labels, weight, *temperatures, *numbers)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple) -> None:
        _keep(ctx, output[1:], inputs[:7])
        ctx.numbers, ctx.factors = inputs[7:]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 9
        saved = ctx.saved_tensors
        grads, inputs = saved[:3], saved[3:]
        wanted = ctx.numbers[8], ctx.numbers[8] and inputs[2] is not None, ctx.numbers[9]
        factors = ctx.factors[0], ctx.factors[1], ctx.factors[0]
        if ctx.gradients_handed_on:
            grads = _ops.kd_loss(*inputs, *ctx.numbers)[1:]
        grad_student, grad_clean, grad_teacher = _scaled(ctx, grads, wanted, factors, grad_loss)
        return grad_student, grad_teacher, grad_clean, None, None, None, None, None, None


class PairLoss(torch.autograd.Function):
    """A loss of adversarial and clean logits, with gradients for both. See `_ops.pair_loss`."""

    @staticmethod
    def forward(
        adv: Tensor, clean: Tensor, labels: Tensor, weight: Tensor | None, numbers: PairNumbers, factor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.pair_loss(adv, clean, labels, weight, *numbers)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple) -> None:
        _keep(ctx, output[1:], inputs[:4])
        ctx.numbers, ctx.factor = inputs[4:]

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 6
        saved = ctx.saved_tensors
        grads, inputs = saved[:2], saved[2:]
        if ctx.gradients_handed_on:
            grads = _ops.pair_loss(*inputs, *ctx.numbers)[1:]
        grads = _scaled(ctx, grads, (True, True), (ctx.factor, ctx.factor), grad_loss)
        return *grads, None, None, None, None


def _keep(ctx: FunctionCtx, grads: Sequence[Tensor], inputs: Sequence[Tensor | None]) -> None:
    ctx.mark_non_differentiable(*grads)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*grads, *inputs)
    ctx.gradients_handed_on = False


def _scaled(
    ctx: FunctionCtx, grads: Sequence[Tensor], wanted: Sequence[bool], factors: Sequence[float], grad_loss: Tensor
) -> list[Tensor | None]:
    """The wanted gradients times their factor and the incoming one, in place unless traced; None for the others."""
    if torch.compiler.is_compiling():  # a traced graph is functional; its compiler fuses the product
        rows = grad_loss.reshape(-1, 1)
        return [
            (grad * (rows * factor)).to(grad.dtype) if want else None
            for grad, want, factor in zip(grads, wanted, factors, strict=True)
        ]
    ctx.gradients_handed_on = True
    grad_loss = grad_loss.contiguous()
    for grad, want, factor in zip(grads, wanted, factors, strict=True):
        if want:
            _ops.scale_rows_(grad, grad_loss, factor)
    return [grad if want else None for grad, want in zip(grads, wanted, strict=True)]


class _Positional(inspect.Signature):
    """A signature that takes its arguments as they come: torch binds them by name in every call, 20 us for these."""

    def bind(self, *args: object) -> _Bound:
        return _Bound(args, {})


class _Bound(NamedTuple):
    args: tuple
    kwargs: dict

    def apply_defaults(self) -> None:
        """Every argument was given."""


for function in (KdLoss, PairLoss):
    function.forward.__signature__ = _Positional(inspect.signature(function.forward).parameters.values())
