"""Multi-teacher adversarial robustness distillation, MTARD (Zhao, Yu, Sun, Zhang, Wei; ECCV 2022)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ard_fast import functional as F
from ard_fast._typing import known
from ard_fast.data.batches import Batch
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import KL_MEAN, RSLAD_RECIPE, UNCLAMPED_NORMAL, kl_settings, kl_words


@dataclass(eq=False, repr=False, kw_only=True)
class MultiTeacherDistillation(PGDMethod):
    """T^2 [(1 - w) L_adv + w L_nat], L_adv = KL(T(x') || S(x')), L_nat = KL(T'(x) || S(x)); x' attacks CE(S(x'), y).

    T, trained adversarially, sees the attacked images; T', trained on clean ones, the clean images. w, 1/2 at the
    start, moves before each step's loss by -r (w - l_nat / (l_nat + l_adv)), where l is a loss of this step in units of
    the same loss of the first step: the term that has fallen less gets more weight. r is `balance_rate` and follows the
    learning rate's drops, as in the code. The code's losses have 1e-5 inside the logarithm of the target, which shifts
    l by less than that: left out.

    State: w and the first two losses, on the device. The losses are means over the global batch, so w is the same in
    every process.
    """

    name = "mtard"
    summary = "MTARD: w_adv KL(T(x') || S(x')) + w_nat KL(T'(x) || S(x)), weights balanced (Zhao et al., ECCV 2022)"
    state = ("balance",)
    teachers = ("teacher", "clean_teacher")
    asked_clean = ("clean_teacher",)
    init = "normal"
    whole_batch = True
    paper = RSLAD_RECIPE
    quirks = (KL_MEAN, UNCLAMPED_NORMAL)

    temperature: float = 1.0
    reduction: str = "mean"
    balance_rate: float = 0.025

    def __post_init__(self) -> None:
        super().__post_init__()
        device = self.context.device
        # w, the first L_adv, the first L_nat; the latter two NaN until they are known
        self.balance = torch.tensor([0.5, torch.nan, torch.nan], device=device)
        self.rate = torch.zeros((), device=device)
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        self.rate.fill_(self.balance_rate * self.context.relative_rate(epoch))

    def attack(self, student: Network, batch: Batch) -> Inner:
        clean_target = self.clean_teacher.clean(batch)
        x_adv = self.perturb(student, batch, batch.y)
        return Inner(x_adv, self.teacher(x_adv), clean_target)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits, how = student(known(inner.x_adv)), kl_settings(self)
        adversarial = F.kl_distill_loss(logits, known(inner.target), **how)
        natural = F.kl_distill_loss(student(batch.x), known(inner.clean_target), **how)
        inner.record = self._balanced(adversarial, natural, len(batch.y))
        weight = known(inner.record)[0]
        return StepResult((1.0 - weight) * adversarial + weight * natural, logits)

    def after_backward(self, batch: Batch, inner: Inner) -> None:
        self.balance.copy_(known(inner.record))

    def end_epoch(self) -> dict[str, float]:
        return {"clean_weight": self.balance[0].item()}

    def _balanced(self, adversarial: Tensor, natural: Tensor, count: int) -> Tensor:
        """The state after a step with these losses."""
        with torch.no_grad():
            ones = torch.ones_like(adversarial)
            sums = self.context.all_reduce(torch.stack((adversarial, natural, ones)) * count)
            losses = sums[:2] / sums[2]
            weight, first = self.balance[0], self.balance[1:]
            first = torch.where(first.isnan(), losses, first)
            relative = losses / first
            weight = weight - self.rate * (weight - relative[1] / relative.sum())
            return torch.cat((weight[None], first))

    def conventions(self) -> list[str]:
        return [
            f"loss T^2 * [(1 - w) * KL(T(x') || S(x')) + w * KL(T'(x) || S(x))], {kl_words(self)}",
            f"w from 1/2, at each step -= {self.balance_rate:g} * (w - l_nat / (l_nat + l_adv)), l: loss / first loss; "
            "the factor falls with the learning rate",
            "T, adversarially trained, sees x', T', trained on clean images, x, both in eval mode; x' attacks "
            "CE(S(x'), y) from noise of 0.001 N(0, 1)",
        ]
