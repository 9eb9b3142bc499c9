"""Batch norm over the images of all processes, on any device (torch's own `SyncBatchNorm` refuses CPU tensors)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ard_fast._typing import known
from ard_fast.training.distributed import World


class SyncBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d/2d/3d` whose batch statistics are those of the whole batch, over all processes.

    Parameters, buffers and their names are those of the layer it replaces; in eval mode it is that layer. A process
    that is idle (`World.idle`) is normalised like the others and adds nothing to the statistics. Differentiable once.
    """

    def __init__(self, replaced: _BatchNorm, world: World) -> None:
        super().__init__(
            replaced.num_features, replaced.eps, replaced.momentum, replaced.affine, replaced.track_running_stats
        )
        self.weight, self.bias = replaced.weight, replaced.bias
        self.running_mean, self.running_var = replaced.running_mean, replaced.running_var
        self.num_batches_tracked = replaced.num_batches_tracked
        self.training = replaced.training
        self.world = world

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, ...]`, normalised."""
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        tracked = (self.running_mean, self.running_var) if self.track_running_stats else None
        momentum = self.momentum
        if tracked is not None:
            count = known(self.num_batches_tracked).add_(1)
            if momentum is None:  # the plain mean of all batches
                momentum = 1.0 / float(count)
        return _Normalise.apply(input, self.weight, self.bias, tracked, momentum, self.eps, self.world)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        tracked: tuple[Tensor, Tensor] | None,
        momentum: float | None,
        eps: float,
        world: World,
    ) -> Tensor:
        dims = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(x.float(), dims, correction=0)
        var, mean = var.double(), mean.double()
        # Sums in float64: their difference below loses nothing that float32 statistics would have kept.
        sums = torch.cat((mean, var + mean * mean, torch.ones_like(mean[:1]))) * (x.numel() // x.shape[1])
        mean, square, count = world.sum_counted(sums).split((len(mean), len(mean), 1))
        mean = mean / count
        var = (square / count - mean * mean).clamp_min_(0.0)
        if tracked is not None:
            running_mean, running_var = tracked
            share = known(momentum)
            unbiased = var * (count / (count - 1).clamp_min_(1.0))
            running_mean.lerp_(mean.to(running_mean.dtype), share)
            running_var.lerp_(unbiased.to(running_var.dtype), share)
        mean, var = mean.float(), var.float()
        ctx.eps, ctx.world, ctx.idle = eps, world, world.idle
        ctx.save_for_backward(x, weight, mean, var, count)
        return torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, torch.backends.cudnn.enabled)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch says how many there are
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, count = ctx.saved_tensors
        _, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [False, True, True]
        )
        grad_x = None
        if ctx.needs_input_grad[0]:
            with ctx.world.counting(not ctx.idle):
                sums = ctx.world.sum_counted(torch.cat((grad_bias, grad_weight)).double())
            shape = (1, -1, *[1] * (x.dim() - 2))
            scale = (var + ctx.eps).rsqrt()
            grad_x = grad
            if not ctx.idle:  # the statistics depend on x
                along_bias, along_weight = (sums / count).float().chunk(2)
                grad_x = (grad - along_bias.view(shape)) - (x - mean.view(shape)) * (along_weight * scale).view(shape)
            grad_x = (grad_x * (scale if weight is None else scale * weight).view(shape)).to(x.dtype)
        grad_weight = grad_weight if ctx.needs_input_grad[1] else None
        grad_bias = grad_bias if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias, None, None, None, None


def synchronise(network: nn.Module, world: World) -> nn.Module:
    """Replace every batch-norm layer of a network; alone in the world, none."""
    if world.size == 1:
        return network
    if isinstance(network, _BatchNorm):
        return SyncBatchNorm(network, world)
    for name, child in network.named_children():
        setattr(network, name, synchronise(child, world))
    return network
