"""Anti-bias soft label distillation, ABSLD (Zhao, Duan, Wang, Wei; NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as tf
from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.attacks import KLPGD
from ard_fast.data import Batch
from ard_fast.methods.attack import kl_attack
from ard_fast.methods.base import Inner, Method, MethodContext, Network, Quirk, StepResult
from ard_fast.methods.by_class import sums_by_class
from ard_fast.methods.quirks import KL_MEAN, UNCLAMPED_NORMAL
from ard_fast.methods.settings import FilledSettings
from ard_fast.methods.spec import MethodSpec
from ard_fast.methods.words import kl_words
from ard_fast.teachers import Teacher

LOWEST, HIGHEST = 0.5, 5.0  # of the classes' temperatures


class AntiBiasDistillation(Method):
    """RSLAD with teachers' labels as smooth as their class can bear: T^2 [alpha KL(T^a(x) || S(x')) + (1 - alpha)
    KL(T^n(x) || S(x))], T^a(x) = softmax(T(x) / a_y), x' attacking KL(T^a(x) || S(x')).

    The teacher's temperatures a and n (on top of T), one for each class y and each term, start at 1. After each epoch
    a_c -= r (L_c - mean L) / max |L - mean L|, held within [0.5, 5], L_c the epoch's mean CE of class c at x' (at x for
    n): a class that is learnt badly gets sharper labels. r follows the learning rate's drops. The code takes sums for
    L_c; where classes are equally frequent, as in CIFAR, that is the same. A class that no image of the epoch had keeps
    its temperatures and does not count in the mean.

    In the code both targets share memory and are divided in place, so that the published figures come from logits
    divided by a_y n_y in both terms and in the attack (`temperature_product`).

    State: temperatures and the running epoch's sums, on the device, the same in every process.
    """

    name = "absld"

    def __init__(self, inner_attack: KLPGD, settings: FilledSettings, context: MethodContext) -> None:
        self.teacher, self.inner_attack, self.context = context.teachers["teacher"], inner_attack, context
        self.alpha, self.temperature, self.reduction = settings.alpha, settings.temperature, settings.reduction
        self.initial_rate, self.product = settings.balance_rate, settings.temperature_product
        # first row for x', second for x
        self.class_temperatures = torch.ones(2, context.num_classes, device=context.device)
        self.sums = torch.zeros(3, context.num_classes, dtype=torch.float64, device=context.device)
        self.rate = torch.zeros((), device=context.device)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        # The code drops the learning rate, and r with it, before it moves the temperatures at an epoch's end.
        self.rate.fill_(self.initial_rate * self.context.relative_rate(epoch + 1))

    def clean_teachers(self) -> tuple[Teacher, ...]:
        return (self.teacher,)

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.teacher.clean(batch)
        attacked = target / self._teacher_temperatures(batch)[0][:, None]
        return Inner(self.inner_attack(student, batch.x, attacked, seed=batch.seed, sample_ids=batch.ids), target)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits, clean = student(known(inner.x_adv)), student(batch.x)
        adversarial, natural = self._teacher_temperatures(batch)
        loss = F.rslad_loss(
            logits,
            student_logits=clean,
            teacher_logits=known(inner.target),
            adv_weight=self.alpha,
            clean_weight=1.0 - self.alpha,
            temperature=self.temperature,
            reduction=self.reduction,
            teacher_temperature=self.temperature * adversarial,
            clean_teacher_temperature=self.temperature * natural,
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

    def state_dict(self) -> dict[str, Tensor]:
        return {"class_temperatures": self.class_temperatures, "sums": self.sums}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.class_temperatures.copy_(state["class_temperatures"])
        self.sums.copy_(state["sums"])

    def _teacher_temperatures(self, batch: Batch) -> Tensor:
        """For each sample, of the term at x' and of the one at x: `[2, B]`."""
        temperatures = self.class_temperatures[:, batch.y]
        return temperatures.prod(0).expand(2, -1).contiguous() if self.product else temperatures

    def conventions(self) -> list[str]:
        own = "divided by the class temperature of each term"
        if self.product:
            own = "divided by the product of the class's two temperatures in both terms, as published"
        return [
            f"loss T^2 * [{self.alpha:.4g} * KL(T(x) || S(x')) + {1 - self.alpha:.4g} * KL(T(x) || S(x))], "
            f"{kl_words(self)}; teacher's logits {own}",
            f"class temperatures from 1 within [{LOWEST:g}, {HIGHEST:g}], each epoch moved by up to "
            f"{self.initial_rate:g} against the class's CE; the step falls with the learning rate",
            "teacher sees x, eval mode; x' attacks the KL of the first term at temperature 1 of the student, from "
            "noise of 0.001 N(0, 1)",
        ]


def _build(settings: FilledSettings, context: MethodContext) -> AntiBiasDistillation:
    return AntiBiasDistillation(kl_attack(settings), settings, context)


SPEC = MethodSpec(
    summary="ABSLD: RSLAD with a teacher temperature for each class, moved each epoch (Zhao et al., NeurIPS 2024)",
    build=_build,
    defaults={
        "steps": 10,
        "attack_bn": "eval",
        "clamp_start": True,
        "alpha": 5 / 6,
        "temperature": 1.0,
        "reduction": "mean",
        "balance_rate": 0.1,
        "temperature_product": False,
    },
    teachers=("teacher",),
    paper={"student": "resnet18", "epochs": 300, "milestones": (215, 260, 285), "lr": 0.1, "weight_decay": 2e-4},
    quirks=(
        Quirk(
            "the teacher's logits are divided by the product of both class temperatures in both terms",
            {"temperature_product": True},
        ),
        KL_MEAN,
        UNCLAMPED_NORMAL,
    ),
)
