"""The autograd side of the losses over rows of logits: their gradients come out of the forward kernel.

The gradients leave the kernel with weights of their own, and `factors` are what the incoming gradient is multiplied by
on top of these (float16 gradients leave the kernel well inside their range and get their final size here).

The first backward scales the kernel's gradients in place and hands them on: with an incoming gradient of 1 and factors
of 1 the scaling kernel returns at once, so that a whole loss costs one pass over the logits. If that gradient is the
very tensor that `one` returns there is no kernel either, and no wait to see its value: autograd hands tensors on as
they are, through sums too. A second backward through a retained graph computes them anew.

The transforms of torch.func that are reverse mode work, with vmap (rows of all calls in one kernel); forward mode and
second derivatives are refused. For this the losses must be applied as the functions here wherever a derivative may be
asked for: under a transform `requires_grad` does not say it (see `may_be_transformed`). There is no `jvp` here, because
Dynamo does not trace functions that have one; torch's own refusal is what a caller sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol, cast

import torch
from torch import Tensor
from torch._C._functorch import unwrap_if_dead
from torch.autograd import forward_ad

from ard_fast._typing import Context
from ard_fast.functional import _ops

# The numbers that the operator takes after its tensors.
KdNumbers = tuple[float, float, float, float, float, float, float, bool, bool, bool]
PairNumbers = tuple[bool, float, float, float, float, bool, bool]

# Until then Dynamo calls the operator itself under a transform, and the gradients are zeros.
_LOST_WHEN_COMPILED = torch.__version__ < (2, 15)  # pyright: ignore[reportOperatorIssue] - torch's version compares with numbers


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
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        temperatures = teacher_temperature, clean_teacher_temperature
        return _ops.direct(_ops.kd_loss)(student, teacher, clean, labels, weight, *temperatures, *numbers)[:4]

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        _keep(ctx, output[1:], inputs[:7])
        ctx.numbers, ctx.factors = inputs[7:]

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch says how many there are
        ctx: Context, grad_loss: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 9
        grad_student, grad_clean, grad_teacher, *inputs = ctx.saved_tensors
        numbers, (factor, clean_factor) = ctx.numbers, ctx.factors
        if ctx.gradients_handed_on:
            with torch.no_grad():
                _, grad_student, grad_clean, grad_teacher, _ = _ops.kd_loss(*inputs, *numbers)
        grads = (grad_student, factor), (grad_clean, clean_factor), (grad_teacher, factor)
        grad_student, grad_clean, grad_teacher = _scaled(ctx, grads, grad_loss, inputs[:3])
        return grad_student, grad_teacher, grad_clean, None, None, None, None, None, None

    @staticmethod
    def vmap(
        info: VmapInfo, in_dims: tuple[int | None, ...], *arguments: Any
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        *tensors, numbers, factors = arguments
        *weights, reduce, with_grad, live = numbers
        rows, *grads = KdLoss.apply(*_stacked(info, in_dims, tensors), (*weights, False, with_grad, live), factors)
        return _unstacked(info, rows, grads, reduce)


class PairLoss(torch.autograd.Function):
    """A loss of adversarial and clean logits, with gradients for both. See `_ops.pair_loss`."""

    @staticmethod
    def forward(
        adv: Tensor, clean: Tensor, labels: Tensor, weight: Tensor | None, numbers: PairNumbers, factor: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _ops.pair_loss(adv, clean, labels, weight, *numbers)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        _keep(ctx, output[1:], inputs[:4])
        ctx.numbers, ctx.factor = inputs[4:]

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] - torch says how many there are
        ctx: Context, grad_loss: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        if grad_loss is None:
            return (None,) * 6
        grad_adv, grad_clean, *inputs = ctx.saved_tensors
        if ctx.gradients_handed_on:
            with torch.no_grad():
                _, grad_adv, grad_clean = _ops.pair_loss(*inputs, *ctx.numbers)
        grads = _scaled(ctx, ((grad_adv, ctx.factor), (grad_clean, ctx.factor)), grad_loss, inputs[:2])
        return *grads, None, None, None, None

    @staticmethod
    def vmap(
        info: VmapInfo, in_dims: tuple[int | None, ...], *arguments: Any
    ) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
        *tensors, numbers, factor = arguments
        *weights, reduce, with_grad = numbers
        rows, *grads = PairLoss.apply(*_stacked(info, in_dims, tensors), (*weights, False, with_grad), factor)
        return _unstacked(info, rows, grads, reduce)


class _DifferentiatedOnce(torch.autograd.Function):
    """A gradient as it is, of which the second derivative is refused; without this it would be taken for 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, *sources: Tensor | None) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Context, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Nothing is needed later."""

    @staticmethod
    def backward(ctx: Context, *_: Tensor) -> NoReturn:
        raise RuntimeError("the losses of ard_fast can be differentiated once only: their gradient has no derivative")


def apply(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)`, which first binds the arguments by name; that is left out where no transform is."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    # Tensors may have outlived a transform.
    unwrapped = [unwrap_if_dead(each) if type(each) is Tensor else each for each in arguments]
    return cast("Any", super(torch.autograd.Function, function)).apply(*unwrapped)


_ones: dict[torch.device, Tensor] = {}


def one(device: torch.device) -> Tensor:
    """The gradient 1 of a loss, float32, to start a backward pass with. Never written to."""
    if device not in _ones:
        with torch.inference_mode(False):
            _ones[device] = torch.ones((), device=device)
    return _ones[device]


class VmapInfo(Protocol):
    """What torch tells the `vmap` of a function."""

    batch_size: int
    randomness: str


def may_be_transformed() -> bool:
    """Whether something is at work under which a tensor that needs a gradient may not say so by `requires_grad`.

    That is a transform of torch.func or forward-mode differentiation.

    Raises:
        NotImplementedError: a transform inside a compiled function, whose gradient torch would lose without a word.
    """
    # As torch.autograd.Function.apply asks it; there is no public name.
    if not torch._C._are_functorch_transforms_active():
        return forward_ad._current_level >= 0
    if _LOST_WHEN_COMPILED and torch.compiler.is_compiling():
        raise NotImplementedError(
            "torch.func inside torch.compile needs torch 2.15 for the losses of ard_fast: compile without the "
            f"transform, or call torch.autograd.grad in place of torch.func.grad; this is torch {torch.__version__}"
        )
    return True


def _stacked(info: VmapInfo, in_dims: tuple[int | None, ...], tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Tensors `[B, ...]` of N calls as those of one, `[N * B, ...]`."""

    def stacked(tensor: Tensor | None, dim: int | None) -> Tensor | None:
        if tensor is None:
            return None
        calls = tensor.expand(info.batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)
        return calls.flatten(0, 1).contiguous()

    return [stacked(tensor, dim) for tensor, dim in zip(tensors, in_dims, strict=False)]


def _unstacked(
    info: VmapInfo, rows: Tensor, grads: Sequence[Tensor | None], reduce: bool
) -> tuple[tuple[Tensor | None, ...], tuple[int | None, ...]]:
    """What N calls would have returned, and the dimensions of the calls."""
    rows = rows.unflatten(0, (info.batch_size, -1))
    calls = [None if grad is None else grad.unflatten(0, (info.batch_size, -1)) for grad in grads]
    return (rows.sum(1) if reduce else rows, *calls), (0, *(None if grad is None else 0 for grad in grads))


def _keep(ctx: Context, grads: Sequence[Any], inputs: Sequence[Any]) -> None:
    ctx.mark_non_differentiable(*[grad for grad in grads if grad is not None])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*grads, *inputs)
    ctx.gradients_handed_on = False


def _scaled(
    ctx: Context,
    grads: Sequence[tuple[Tensor | None, float]],
    grad_loss: Tensor,
    logits: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients, each times its factor and the incoming one.

    In place, unless traced (a traced graph is functional; its compiler fuses the product) or transformed (the incoming
    gradients may be those of many calls). `logits` are what the gradients depend on.
    """
    if torch.compiler.is_compiling() or may_be_transformed():
        rows = grad_loss.reshape(-1, 1)
        scaled = [None if grad is None else (grad * (rows * factor)).to(grad.dtype) for grad, factor in grads]
    else:
        ctx.gradients_handed_on = True
        is_one = grad_loss is _ones.get(grad_loss.device)
        row_factors = (grad_loss.detach() if grad_loss.requires_grad else grad_loss).contiguous()
        for grad, factor in grads:
            if grad is not None and not (is_one and factor == 1.0):
                _ops.scale_rows_(grad, row_factors, factor)
        scaled = [grad for grad, _ in grads]
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # the gradients may be differentiated
        return [None if grad is None else _DifferentiatedOnce.apply(grad, grad_loss, *logits) for grad in scaled]
    return scaled
