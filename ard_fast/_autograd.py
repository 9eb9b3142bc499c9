"""The autograd side of the distillation loss: its gradients come out of the forward kernel."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from ard_fast import _ops

# temperature, kl_weight, ce_weight, kl_grad_weight, ce_grad_weight, reduce: as `_ops.kd_loss` takes them; then
# kl_factor and ce_factor. One tuple, because torch binds every argument of a Function by name in each call.
KdSettings = tuple[float, float, float, float, float, bool, float, float]


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
        settings: KdSettings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.kd_loss(student, teacher, clean, labels, *settings[:6], True, False)[:3]

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple, output: tuple) -> None:
        student, teacher, clean, labels, settings = inputs
        _, grad_student, grad_clean = output
        ctx.mark_non_differentiable(grad_student, grad_clean)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(grad_student, grad_clean, student, teacher, clean, labels)
        ctx.settings = settings
        ctx.gradients_handed_on = False

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_loss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return None, None, None, None, None
        grad_student, grad_clean, student, teacher, clean, labels = ctx.saved_tensors
        kl_factor, ce_factor = ctx.settings[6:]
        with_clean = clean is not None
        grad_loss = grad_loss.contiguous()
        if torch.compiler.is_compiling():  # a traced graph is functional; its compiler fuses the product
            rows = grad_loss.reshape(-1, 1)
            grad_student = (grad_student * (rows * kl_factor)).to(student.dtype)
            grad_clean = (grad_clean * (rows * ce_factor)).to(student.dtype) if with_clean else None
            return grad_student, None, grad_clean, None, None
        if ctx.gradients_handed_on:
            outputs = _ops.kd_loss(student, teacher, clean, labels, *ctx.settings[:6], True, False)
            _, grad_student, grad_clean, _ = outputs
        ctx.gradients_handed_on = True
        _ops.scale_rows_(grad_student, grad_loss, kl_factor)
        if with_clean:
            _ops.scale_rows_(grad_clean, grad_loss, ce_factor)
        return grad_student, None, grad_clean if with_clean else None, None, None


# Otherwise torch works the signature out anew in every call: 20 us.
KdLoss.forward.__signature__ = inspect.signature(KdLoss.forward)
