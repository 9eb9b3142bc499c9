"""The losses by the textbook, those that attacks ascend, and their gradients by autograd."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ard_fast._typing import known


def kl_distill_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    scale_t2: bool = True,
    weight: Tensor | None = None,
    teacher_temperature: float | Tensor | None = None,
) -> Tensor:
    """T^2 * KL(teacher || student) by the textbook."""
    rows = _kl_rows(student_logits, teacher_logits, temperature, teacher_temperature)
    rows = rows * (temperature**2 if scale_t2 else 1.0)
    return _reduce(rows, 0.0, reduction, weight, student_logits.shape[1])


def ard_loss(
    student_adv_logits: Tensor,
    *,
    teacher_logits: Tensor,
    student_logits: Tensor | None = None,
    labels: Tensor | None = None,
    alpha: float = 1.0,
    temperature: float = 30.0,
    reduction: str = "mean",
    weight: Tensor | None = None,
) -> Tensor:
    """alpha * T^2 * KL(teacher || student_adv) + (1 - alpha) * CE(student, labels)."""
    kl = alpha * temperature**2 * _kl_rows(student_adv_logits, teacher_logits, temperature)
    cross_entropy = 0.0 if alpha == 1.0 else F.cross_entropy(known(student_logits), known(labels), reduction="none")
    return _reduce(kl, (1.0 - alpha) * cross_entropy, reduction, weight, teacher_logits.shape[1])


def rslad_loss(
    student_adv_logits: Tensor,
    *,
    student_logits: Tensor,
    teacher_logits: Tensor,
    adv_weight: float = 5 / 6,
    clean_weight: float = 1 / 6,
    temperature: float = 1.0,
    reduction: str = "mean",
    weight: Tensor | None = None,
    teacher_temperature: float | Tensor | None = None,
    clean_teacher_temperature: float | Tensor | None = None,
) -> Tensor:
    """T^2 * (adv_weight * KL(teacher || student_adv) + clean_weight * KL(teacher || student))."""
    if clean_teacher_temperature is None:
        clean_teacher_temperature = teacher_temperature
    adv = _kl_rows(student_adv_logits, teacher_logits, temperature, teacher_temperature)
    clean = _kl_rows(student_logits, teacher_logits, temperature, clean_teacher_temperature)
    rows = temperature**2 * (adv_weight * adv + clean_weight * clean)
    return _reduce(rows, 0.0, reduction, weight, teacher_logits.shape[1])


def trades_loss(
    adv_logits: Tensor,
    *,
    clean_logits: Tensor,
    labels: Tensor,
    beta: float = 6.0,
    reduction: str = "batchmean",
    weight: Tensor | None = None,
) -> Tensor:
    """CE(clean, labels) + beta * KL(clean || adv)."""
    cross_entropy = F.cross_entropy(clean_logits, labels, reduction="none")
    return _reduce(beta * _kl_rows(adv_logits, clean_logits), cross_entropy, reduction, weight, adv_logits.shape[1])


def mart_loss(
    adv_logits: Tensor,
    *,
    clean_logits: Tensor,
    labels: Tensor,
    beta: float = 5.0,
    reduction: str = "batchmean",
    weight: Tensor | None = None,
) -> Tensor:
    """CE(adv, y) - log(1.0001 - max_{j != y} p_j) + beta * KL(clean || adv) * (1 - p_y(clean))."""
    label = labels.unsqueeze(1)
    # argmax, not amax: among equal classes the first gets the whole gradient.
    rival = adv_logits.detach().scatter(1, label, -torch.inf).argmax(dim=1, keepdim=True)
    rival_probability = F.softmax(adv_logits, dim=1).gather(1, rival).squeeze(1)
    boosted = F.cross_entropy(adv_logits, labels, reduction="none") - torch.log(1.0001 - rival_probability)
    doubt = F.softmax(clean_logits, dim=1).scatter(1, label, 0.0).sum(dim=1)  # 1 - p_y
    kl = _kl_rows(adv_logits, clean_logits).masked_fill(doubt == 0, 0.0)
    return _reduce(beta * kl * doubt, boosted, reduction, weight, adv_logits.shape[1])


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


def _kl_rows(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, teacher_temperature: float | Tensor | None = None
) -> Tensor:
    if teacher_temperature is None:
        teacher_temperature = temperature
    elif isinstance(teacher_temperature, Tensor) and teacher_temperature.dim() == 1:
        teacher_temperature = teacher_temperature.unsqueeze(1)
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / teacher_temperature, dim=1)
    q = log_q.exp()
    excluded = q == 0  # 0 * log 0 = 0, of which F.kl_div makes NaN
    return (q * (log_q.masked_fill(excluded, 0.0) - log_p.masked_fill(excluded, 0.0))).sum(dim=1)


def _reduce(kl: Tensor, other: Tensor | float, reduction: str, weight: Tensor | None, classes: int) -> Tensor:
    """The weighted rows, summed or averaged; under "mean" the KL is divided by the classes too."""
    rows = (kl / classes if reduction == "mean" else kl) + other
    rows = rows if weight is None else rows * weight
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else rows.mean()
