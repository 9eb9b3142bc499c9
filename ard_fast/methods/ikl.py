"""The improved KL divergence, IKL (Cui, Tian, Zhong, Qi, Yu, Zhang; NeurIPS 2024, arXiv 2305.13948), in two methods."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as tf
from torch import Tensor

from ard_fast._typing import known
from ard_fast.attacks.pgd import KLPGD
from ard_fast.data.batches import Batch
from ard_fast.losses import ikl_loss
from ard_fast.methods.base import Inner, Network, PGDMethod, StepResult
from ard_fast.methods.shared import RSLAD_RECIPE, UNCLAMPED_NORMAL, recipe, sums_by_class


@dataclass(eq=False, repr=False, kw_only=True)
class ClassMeanDivergence(PGDMethod):
    """A method whose IKL weighs the differences of logits by class means, see `ard_fast.losses.ikl_loss`.

    The weights of an image of class y are the mean of softmax(r / t) over the images of class y in the epoch before, r
    the logits that the KL has as its reference at the clean images; 1 / C in the first epoch. t is
    `class_mean_temperature`. A class that no image of the epoch had keeps its means.

    State: the means and the running epoch's sums, on the device, the same in every process.
    """

    state = ("class_means", "sums")
    attack_class, init = KLPGD, "normal"
    quirks = (UNCLAMPED_NORMAL,)

    mse_weight: float = 20.0
    kl_weight: float = 4.0
    class_mean_temperature: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        classes, device = self.context.num_classes, self.context.device
        self.class_means = torch.full((classes, classes), 1.0 / classes, device=device)  # a row for each class
        self.sums = torch.zeros(classes + 1, classes, dtype=torch.float64, device=device)

    def divergence(self, logits: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
        """The IKL of a batch's logits `[B, C]` from their reference."""
        weights = self.class_means[labels]
        how = {"mse_weight": self.mse_weight, "kl_weight": self.kl_weight}
        return ikl_loss(logits, reference_logits=reference, class_weights=weights, **how)

    def record(self, inner: Inner, reference: Tensor) -> None:
        """Leave what the means need in `inner`."""
        inner.record = torch.softmax(reference.detach() / self.class_mean_temperature, 1).t()

    def after_backward(self, batch: Batch, inner: Inner) -> None:
        self.sums += self.context.all_reduce(sums_by_class(known(inner.record), batch.y, self.context.num_classes))

    def end_epoch(self) -> dict[str, float]:
        count = self.sums[-1]
        means = (self.sums[:-1] / count.clamp_min(1.0)).t().float()
        self.class_means.copy_(torch.where(count[:, None] > 0, means, self.class_means))
        self.sums.zero_()
        return {}

    def weight_words(self) -> str:
        """The weights in words."""
        return (
            f"w: class means of softmax(r / {self.class_mean_temperature:g}) over the epoch before, r the reference at "
            "x; 1/C in the first epoch"
        )


@dataclass(eq=False, repr=False, kw_only=True)
class ImprovedTrades(ClassMeanDivergence):
    """CE(S(x), y) + a M_w(S(x), S(x')) + b KL(sg(S(x)) || S(x')), x' attacking KL(S(x) || S(x')): TRADES by IKL.

    M_w is the weighted mean square of logit differences, with gradients to both; sg stops the gradient; a and b are
    `mse_weight` and `kl_weight` (beta and alpha in the paper). They and the temperature are those of the authors'
    script for CIFAR-10, which trains with AWP and averages the epochs' ends with decay 0.9, about an EMA of 0.9997 an
    update. Its radius grows linearly over the training, with 2 to 5 steps; here the attack is TRADES's throughout.
    """

    name = "ikl"
    summary = "IKL: CE(S(x), y) + 20 M_w(S(x), S(x')) + 4 KL(sg(S(x)) || S(x')) (Cui et al., NeurIPS 2024)"
    paper = recipe(
        student="wrn-34-10",
        milestones=None,
        schedule="cosine",
        lr=0.2,
        weight_decay=5e-4,
        awp_gamma=0.005,
        awp_warmup_share=0.05,
        averaging="ema",
        ema_decay=0.9997,
        averaging_start_share=0.0,
    )

    label_smoothing: float = 0.0

    def attack(self, student: Network, batch: Batch) -> Inner:
        return Inner(self.perturb(student, batch))

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits, clean = student(known(inner.x_adv)), student(batch.x)
        self.record(inner, clean)
        loss = tf.cross_entropy(clean, batch.y, label_smoothing=self.label_smoothing)
        return StepResult(loss + self.divergence(logits, clean, batch.y), logits)

    def conventions(self) -> list[str]:
        return [
            f"loss CE(S(x), y) + {self.mse_weight:g} * M_w(S(x), S(x')) + {self.kl_weight:g} * KL(sg(S(x)) || S(x')), "
            "mean over the batch",
            self.weight_words(),
            "x' attacks KL(S(x) || S(x')) from x + 0.001 N(0, 1)",
        ]


@dataclass(eq=False, repr=False, kw_only=True)
class ImprovedDistillation(ClassMeanDivergence):
    """alpha D(T(x), S(x')) + (1 - alpha) D(T(x), S(x)), D = a M_w + b KL: RSLAD by IKL; no label.

    Paper and code distil on clean images only: CE(S(x), y) + D(T(x), S(x)), its weight rising over the first epochs.
    RSLAD's attack and weights around the same D are our choice; so are the values of a (`mse_weight`) and b
    (`kl_weight`), which are those of most pairs of networks in the code's CIFAR-100 settings, without their KL's
    temperature. A teacher's logits have no gradient, and of the original KL only b's term would be left: M_w is what
    IKL adds.

    At alpha = 1 the clean images do not go through the student.
    """

    name = "ikl-rslad"
    summary = "RSLAD with IKL: 5/6 D(T(x), S(x')) + 1/6 D(T(x), S(x)), D = 8 M_w + KL (after Cui et al., NeurIPS 2024)"
    teachers = ("teacher",)
    asked_clean = ("teacher",)
    paper = RSLAD_RECIPE

    alpha: float = 5 / 6
    mse_weight: float = 8.0
    kl_weight: float = 1.0

    def attack(self, student: Network, batch: Batch) -> Inner:
        target = self.teacher.clean(batch)
        return Inner(self.perturb(student, batch, target), target)

    def loss(self, student: Network, batch: Batch, inner: Inner) -> StepResult:
        logits, target = student(known(inner.x_adv)), known(inner.target)
        self.record(inner, target)
        loss = self.alpha * self.divergence(logits, target, batch.y)
        if self.alpha != 1.0:
            loss = loss + (1.0 - self.alpha) * self.divergence(student(batch.x), target, batch.y)
        return StepResult(loss, logits)

    def conventions(self) -> list[str]:
        clean = "" if self.alpha == 1.0 else f" + {1 - self.alpha:.4g} * D(T(x), S(x))"
        return [
            f"loss {self.alpha:.4g} * D(T(x), S(x')){clean}, D = {self.mse_weight:g} * M_w + {self.kl_weight:g} * KL, "
            "mean over the batch",
            self.weight_words(),
            "teacher sees x, eval mode; x' attacks KL(T(x) || S(x')) from noise of 0.001 N(0, 1)",
        ]
