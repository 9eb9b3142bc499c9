"""Logits, and the comparison of a fused loss and all its gradients with the textbook formula in float64."""

import torch
from tolerances import GRAD_RTOL, LOSS_RTOL

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = ["none", "sum", "batchmean", "mean"]
# How far apart the rows are: "wide" is all of +-200, "close" a network near to its target.
KINDS = ["plain", "wide", "close"]


def rows_of_logits(kind, count, batch, classes, dtype, device, seed=0):
    """`count` tensors [batch, classes]."""
    generator = torch.Generator().manual_seed(1000 * classes + seed)
    draws = [3 * torch.randn(batch, classes, generator=generator) for _ in range(count)]
    if kind == "wide":
        draws = [400 * torch.rand(batch, classes, generator=generator) - 200 for _ in range(count)]
    elif kind == "close":
        draws = [draws[0] + 0.01 * k * draw for k, draw in enumerate(draws)]
    return [draw.to(device, dtype) for draw in draws]


def random_labels(batch, classes, device, seed=0):
    return torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(seed)).to(device)


def incoming_gradient(reduction, batch, device):
    """Not 1, and not the same for all rows."""
    values = torch.linspace(-2.0, 7.0, batch) if reduction == "none" else torch.tensor(64.0)
    return values.to(device)


def loss_and_gradients(loss_fn, tensors, grad_output):
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    loss = loss_fn(*leaves)
    return loss.detach(), torch.autograd.grad(loss, leaves, grad_output.to(loss.dtype))


def assert_matches_float64(fused, exact, tensors, grad_output, *, floor=1e-12, smallest=1e-9):
    """Both take the tensors alone; all of them get a gradient.

    Rows with less loss than `floor`, or less gradient than `smallest`, say nothing: float64 has its own cancellation.
    """
    loss, grads = loss_and_gradients(fused, tensors, grad_output)
    exact_loss, exact_grads = loss_and_gradients(exact, [t.double() for t in tensors], grad_output)
    assert loss.dtype == torch.float32 and loss.shape == exact_loss.shape
    error = ((loss.double() - exact_loss).abs() - floor).clamp_min(0) / exact_loss.abs().clamp_min(floor)
    assert error.max() <= LOSS_RTOL, f"loss off by {error.max():.2e}"
    for tensor, grad, exact_grad in zip(tensors, grads, exact_grads, strict=True):
        assert grad.dtype == tensor.dtype and grad.isfinite().all()
        scale = exact_grad.abs().amax(dim=1, keepdim=True)
        # Below the smallest normal half a float16 gradient has fewer digits.
        known = scale > (6.2e-5 if tensor.dtype == torch.float16 else smallest)
        error = ((grad.double() - exact_grad).abs() / scale.clamp_min(1e-30))[known.expand_as(grad)]
        assert error.numel() == 0 or error.max() <= GRAD_RTOL[tensor.dtype], f"gradient off by {error.max():.2e}"
