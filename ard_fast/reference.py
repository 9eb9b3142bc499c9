"""The formulas in plain torch: what the fused operators are tested and measured against.

Same signatures as `ard_fast.functional`, except that `pgd_linf_step` returns a new tensor. Any floating dtype; in
float64 the losses serve as ground truth.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ard_loss", "kl_distill_loss", "pgd_linf_step", "philox_uniform", "random_start"]


def pgd_linf_step(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    step_size: float | Tensor,
    eps: float | Tensor,
    targeted: bool = False,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """The step as the published ARD code writes it."""
    step_size, eps = _per_sample(step_size, x), _per_sample(eps, x)
    stepped = x_adv + (-step_size if targeted else step_size) * torch.sign(grad.to(x_adv.dtype))
    projected = torch.min(torch.max(stepped, x - eps), x + eps)
    return torch.clamp(projected, *bounds)


def random_start(
    x: Tensor,
    *,
    eps: float | Tensor,
    norm: str = "linf",
    init: str = "uniform",
    std: float = 0.001,
    clamp: bool = True,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int,
    sample_ids: Tensor | None = None,
) -> Tensor:
    """x plus Philox noise. Uniform noise has the operator's bits; the normal quantile here is torch's, in float64."""
    if norm != "linf":
        raise ValueError(f"norm must be 'linf', got {norm!r}")
    uniform = philox_uniform(x.shape, seed=seed, sample_ids=sample_ids).to(x.device)
    if init == "uniform":
        noise = _per_sample(eps, x) * uniform.to(x.dtype)
    else:
        noise = (std * torch.special.ndtri((1.0 + uniform.double()) / 2.0)).to(x.dtype)
    out = x + noise
    return torch.clamp(out, *bounds) if clamp else out


def kl_distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    scale_t2: bool = True,
) -> Tensor:
    """T^2 * KL(teacher || student) by the textbook."""
    log_p = F.log_softmax(student_logits / temperature, dim=1)
    log_q = F.log_softmax(teacher_logits / temperature, dim=1)
    rows = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(dim=1)
    rows = rows * (temperature**2 if scale_t2 else 1.0)
    return _reduce(rows / student_logits.shape[1] if reduction == "mean" else rows, reduction)


def ard_loss(
    student_adv_logits: Tensor,
    teacher_logits: Tensor,
    student_logits: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    alpha: float = 1.0,
    temperature: float = 30.0,
    reduction: str = "mean",
) -> Tensor:
    """alpha * T^2 * KL(teacher || student_adv) + (1 - alpha) * CE(student, labels)."""
    loss = alpha * kl_distill_loss(student_adv_logits, teacher_logits, temperature=temperature, reduction=reduction)
    if alpha == 1.0:
        return loss
    cross_entropy = F.cross_entropy(student_logits, labels, reduction="none")
    return loss + (1.0 - alpha) * _reduce(cross_entropy, reduction)


def philox_uniform(shape: torch.Size | tuple[int, ...], *, seed: int, sample_ids: Tensor | None = None) -> Tensor:
    """float32 `shape` on (-1, 1): Philox4x32-10 keyed by (seed, sample id, element), as csrc/core/philox.h."""
    batch, numel = shape[0], torch.Size(shape[1:]).numel()
    groups = (numel + 3) // 4
    ids = torch.arange(batch) if sample_ids is None else sample_ids.cpu()
    mask = 0xFFFFFFFF
    group = torch.arange(groups).expand(batch, groups)
    ids = ids[:, None].expand(batch, groups)
    c0, c1, c2, c3 = group & mask, (group >> 32) & mask, ids & mask, (ids >> 32) & mask
    k0, k1 = seed & mask, (seed >> 32) & mask
    for _ in range(10):
        # int64 products wrap, but their 64 bits are the unsigned ones.
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = ((p1 >> 32) & mask) ^ c1 ^ k0, p1 & mask, ((p0 >> 32) & mask) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + 0x9E3779B9) & mask, (k1 + 0xBB67AE85) & mask
    bits = torch.stack((c0, c1, c2, c3), dim=2).reshape(batch, 4 * groups)[:, :numel]
    odd = 2 * (bits >> 9) + 1 - 2**23
    return (odd.to(torch.float32) * 2.0**-23).reshape(shape)


def _per_sample(value: float | Tensor, x: Tensor) -> float | Tensor:
    """A per-sample tensor shaped to broadcast over x."""
    if isinstance(value, Tensor) and value.dim() == 1:
        return value.to(x.dtype).reshape(-1, *(1,) * (x.dim() - 1))
    return value


def _reduce(rows: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.mean()
