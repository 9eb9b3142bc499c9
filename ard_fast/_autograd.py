"""The autograd side of the distillation loss: its gradients come out of the forward kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ard_fast import _ops


class KdLoss(torch.autograd.Function):
    """Loss, with gradients for the student's logits. See `_ops.kd_loss` for the arguments.

    `kl_factor` and `ce_factor` are what the incoming gradient is multiplied by on top of the weights already in the
    kernel's gradients (float16 gradients leave the kernel well inside their range and get their final size here).

    The first backward scales the kernel's gradients in place and hands them on: with an incoming gradient of 1 and
    factors of 1 the scaling kernel returns at once, so the whole loss costs three passes over the logits. A second
    backward through a retained graph computes them anew.
    """

    @staticmethod
    def forward(
        student: Tensor,
        teacher: Tensor,
        clean: Tensor | None,
        labels: Tensor | None,
        temperature: float,
        kl_weight: float,
        ce_weight: float,
        kl_grad_weight: float,
        ce_grad_weight: float,
        reduce: bool,
        kl_factor: float,
        ce_factor: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights = (temperature, kl_weight, ce_weight, kl_grad_weight, ce_grad_weight)
        return _ops.kd_loss(student, teacher, clean, labels, *weights, reduce, True)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple) -> None:
        student, teacher, clean, labels, *scalars, kl_factor, ce_factor = inputs
        _, grad_student, grad_clean = output
        ctx.mark_non_differentiable(grad_student, grad_clean)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_student, grad_clean, student, teacher, clean, labels)
        ctx.scalars = scalars
        ctx.factors = kl_factor, ce_factor
        ctx.gradients_handed_on = False

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 9
        if grad_loss is None:
            return None, None, None, *nothing
        grad_student, grad_clean, student, teacher, clean, labels = ctx.saved_tensors
        kl_factor, ce_factor = ctx.factors
        with_clean = clean is not None
        grad_loss = grad_loss.contiguous()
        if torch.compiler.is_compiling():  # a traced graph is functional; its compiler fuses the product
            rows = grad_loss.reshape(-1, 1)
            grad_student = (grad_student * (rows * kl_factor)).to(student.dtype)
            grad_clean = (grad_clean * (rows * ce_factor)).to(student.dtype) if with_clean else None
            return grad_student, None, grad_clean, *nothing
        if ctx.gradients_handed_on:
            _, grad_student, grad_clean = _ops.kd_loss(student, teacher, clean, labels, *ctx.scalars, True)
        ctx.gradients_handed_on = True
        _ops.scale_rows_(grad_student, grad_loss, kl_factor)
        if with_clean:
            _ops.scale_rows_(grad_clean, grad_loss, ce_factor)
        return grad_student, None, grad_clean if with_clean else None, *nothing
