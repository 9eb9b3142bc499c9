"""The losses that attacks ascend, and their gradients by autograd."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ard_fast.reference.losses import kl_distill_loss


def attack_loss(
    logits: Tensor,
    target: Tensor,
    *,
    loss: str = "ce",
    labels: Tensor | None = None,
    temperature: float = 1.0,
    kappa: float = 50.0,
) -> Tensor:
    """Row losses `[B]` as the papers write them; see `ard_fast.functional.attack_gradient`."""
    if loss == "kl":
        return kl_distill_loss(logits, target, temperature=temperature, reduction="none")
    if loss == "ce":
        return F.cross_entropy(logits, target, reduction="none")
    y = target if labels is None else labels
    at_label = logits.gather(1, y[:, None])[:, 0]
    # Stable: among equal logits the lowest class comes first.
    ranked, order = logits.sort(dim=1, descending=True, stable=True)
    if loss == "dlr_targeted":
        gap = at_label - logits.gather(1, target[:, None])[:, 0]
        return -gap / (ranked[:, 0] - 0.5 * (ranked[:, 2] + ranked[:, 3]) + 1e-12)
    gap = at_label - torch.where(order[:, 0] == y, ranked[:, 1], ranked[:, 0])
    if loss == "dlr":
        return -gap / (ranked[:, 0] - ranked[:, 2] + 1e-12)
    return -gap if kappa == float("inf") else -F.relu(gap + kappa)


def attack_gradient(
    logits: Tensor, target: Tensor, *, with_target_grad: bool = False, **settings: Any
) -> Tensor | tuple[Tensor, ...]:
    """d(sum of `attack_loss`)/d(logits), and d/d(target) if asked, by autograd; arguments as `attack_loss`."""
    inputs = [logits.detach().requires_grad_()]
    target = target.detach()
    if with_target_grad:
        inputs.append(target.requires_grad_())
    with torch.enable_grad():
        total = attack_loss(inputs[0], target, **settings).sum()
    gradients = torch.autograd.grad(total, inputs)
    return gradients if with_target_grad else gradients[0]
