"""Anti-bias soft label distillation, ABSLD (Zhao, Duan, Wang, Wei; NeurIPS 2024)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as tf
from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks.pgd import KLPGD
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import KL_MEAN, RSLAD_RECIPE, UNCLAMPED_NORMAL, Quirk, kl_settings, kl_words, sums_by_class

LOWEST, HIGHEST = 0.5, 5.0  # of the classes' temperatures


@dataclass(eq=False, repr=False, kw_only=True)
class AntiBiasDistillation(PGDMethod):
    """RSLAD with teachers' labels as smooth as their class can bear: T^2 [alpha KL(T^a(x) || S(x')) + (1 - alpha)
    KL(T^n(x) || S(x))], T^a(x) = softmax(T(x) / a_y), x' attacking KL(T^a(x) || S(x')).

    The teacher's temperatures a and n (on top of T), one for each class y and each term, start at 1. After each epoch
    a_c -= r (L_c - mean L) / max |L - mean L|, held within [0.5, 5], L_c the epoch's mean CE of class c at x' (at x for
    n): a class that is learnt badly gets sharper labels. r is `balance_rate` and follows the learning rate's drops. The
    code takes sums for L_c; where classes are equally frequent, as in CIFAR, that is the same. A class that no image of
    the epoch had keeps its temperatures and does not count in the mean.

    In the code both targets share memory and are divided in place, so that the published figures come from logits
    divided by a_y n_y in both terms and in the attack (`temperature_product`).

    State: temperatures and the running epoch's sums, on the device, the same in every process.
    """

    name = "absld"
    summary = "ABSLD: RSLAD with a teacher temperature for each class, moved each epoch (Zhao et al., NeurIPS 2024)"
    state = ("class_temperatures", "sums")
    teachers = ("teacher",)
    asked_clean = ("teacher",)
    attack_class, init = KLPGD, "normal"
    paper = RSLAD_RECIPE
    quirks = (
        Quirk(
            "the teacher's logits are divided by the product of both class temperatures in both terms",
            {"temperature_product": True},
        ),
        KL_MEAN,
        UNCLAMPED_NORMAL,
    )

    alpha: float = 5 / 6
    temperature: float = 1.0
    reduction: str = "mean"
    balance_rate: float = 0.1
    temperature_product: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        classes, device = self.context.num_classes, self.context.device
        self.class_temperatures = torch.ones(2, classes, device=device)  # first row for x', second for x
        self.sums = torch.zeros(3, classes, dtype=torch.float64, device=device)
        self.rate = torch.zeros((), device=device)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        # The code drops the learning rate, and r with it, before it moves the temperatures at an epoch's end.
        self.rate.fill_(self.balance_rate * self.context.relative_rate(epoch + 1))

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.teacher.clean(batch)
        attacked = target / self._teacher_temperatures(batch)[0][:, None]
        return Inner(self.perturb(student, batch, attacked), target)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits, clean = student(known(inner.x_adv)), student(batch.x)
        adversarial, natural = self._teacher_temperatures(batch)
        loss = F.rslad_loss(
            logits,
            student_logits=clean,
            teacher_logits=known(inner.target),
            adv_weight=self.alpha,
            clean_weight=1.0 - self.alpha,
            teacher_temperature=self.temperature * adversarial,
            clean_teacher_temperature=self.temperature * natural,
            **kl_settings(self),
        )
        with torch.no_grad():
            both = (tf.cross_entropy(rows.float(), batch.y, reduction="none") for rows in (logits, clean))
            inner.record = torch.stack(tuple(both))
        return StepResult(loss, logits)

    def after_backward(self, batch: Batch, inner: Inner) -> None:
        self.sums += self.context.all_reduce(sums_by_class(known(inner.record), batch.y, self.context.num_classes))

    def end_epoch(self) -> dict[str, float]:
        count = self.sums[2]
        seen = count > 0
        means = self.sums[:2] / count.clamp_min(1.0)
        gaps = means - means.sum(1, keepdim=True) / seen.sum().clamp_min(1)
        gaps = torch.where(seen, gaps, 0.0)
        widest = gaps.abs().amax(1, keepdim=True)
        moves = torch.where(widest > 0, gaps / widest, 0.0)
        moved = self.class_temperatures - self.rate * moves.float()
        self.class_temperatures.copy_(moved.clamp(LOWEST, HIGHEST))
        self.sums.zero_()
        adversarial, natural = self.class_temperatures
        return {
            "adv_temperature_min": adversarial.min().item(),
            "adv_temperature_max": adversarial.max().item(),
            "clean_temperature_min": natural.min().item(),
            "clean_temperature_max": natural.max().item(),
        }

    def _teacher_temperatures(self, batch: Batch) -> Tensor:
        """For each sample, of the term at x' and of the one at x: `[2, B]`."""
        temperatures = self.class_temperatures[:, batch.y]
        return temperatures.prod(0).expand(2, -1).contiguous() if self.temperature_product else temperatures

    def conventions(self) -> list[str]:
        own = "divided by the class temperature of each term"
        if self.temperature_product:
            own = "divided by the product of the class's two temperatures in both terms, as published"
        return [
            f"loss T^2 * [{self.alpha:.4g} * KL(T(x) || S(x')) + {1 - self.alpha:.4g} * KL(T(x) || S(x))], "
            f"{kl_words(self)}; teacher's logits {own}",
            f"class temperatures from 1 within [{LOWEST:g}, {HIGHEST:g}], each epoch moved by up to "
            f"{self.balance_rate:g} against the class's CE; the step falls with the learning rate",
            "teacher sees x, eval mode; x' attacks the KL of the first term at temperature 1 of the student, from "
            "noise of 0.001 N(0, 1)",
        ]
