"""The constants of the training methods, all of them in one flat dataclass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ard_fast.training.options import option

REDUCTIONS = ("mean", "batchmean")


@dataclass(frozen=True)
class MethodSettings:
    """What a method is built from. Pixels are in [0, 1], so `eps` and `step_size` are too.

    None stands for the method's own constant (`METHODS[name].defaults`); `ard_fast.training.config.resolve` fills it
    in. A setting that a method does not have stays None, and giving it a value is an error.
    """

    eps: float = option(8 / 255, "radius of the L-infinity ball; may be written 8/255", "attack")
    step_size: float | None = option(None, "step of the training attack; default eps x the method's ratio", "attack")
    steps: int | None = option(None, "steps of the training attack", "attack")
    clamp_start: bool | None = option(None, "clamp the attack's start to [0, 1]; published codes do not", "attack")
    attack_bn: str | None = option(
        None,
        "batch norm inside the training attack: eval (the default of all methods that attack in several steps), train "
        "(batch statistics, running ones updated, as the ARD code), train_frozen (not updated)",
        "attack",
        ("train", "train_frozen", "eval"),
    )
    noise_ratio: float | None = option(None, "n-fgsm: half-width of the start's noise in eps", "attack")
    replays: int | None = option(None, "free, fast-ard: updates on each batch (m)", "attack")
    delta_gradient: str | None = option(
        None,
        "fast-ard: what moves the perturbation: the cross-entropy (ce) or the distillation loss (kd)",
        "attack",
        ("ce", "kd"),
    )

    alpha: float | None = option(
        None, "weight of the adversarial distillation term; 1 - alpha weighs the method's other term", "loss"
    )
    alpha2: float | None = option(None, "iad-ii: weight of the standard teacher", "loss")
    beta: float | None = option(None, "trades, mart: weight of the divergence", "loss")
    temperature: float | None = option(None, "softmax temperature of teacher and student", "loss")
    reduction: str | None = option(
        None, "of the KL: mean divides by batch x classes (the ARD code), batchmean by batch", "loss", REDUCTIONS
    )
    begin_share: float | None = option(
        None, "iad-i, iad-ii, adaiad: share of the epochs after which the student's own term begins", "loss"
    )
    trust_power: float | None = option(None, "iad-i, iad-ii, adaiad: exponent of the teacher's probability", "loss")
    trust_teacher: bool | None = option(
        None, "iad-i, adaiad: weigh the teacher's term by its trust, as the formula; the codes do not", "loss"
    )
    balance_rate: float | None = option(None, "mtard: rate of the weights' balance; absld: of the temperatures", "loss")
    temperature_product: bool | None = option(
        None, "absld: divide by the product of a class's two temperatures everywhere, as published", "loss"
    )
    fairness_power: float | None = option(None, "fair-ard: exponent of the classes' weights", "loss")
    igdm_weight: float | None = option(None, "igdm, saad: weight of the gradient matching at the last epoch", "loss")
    entropy_scale: float | None = option(None, "saad: scale of the weights by the teacher's entropy", "loss")

    clean_branch: bool | None = option(
        None,
        "run the student's clean forward even where its weight is 0, as published codes do (it moves batch norm)",
        "loss",
    )
    repeat_clean: bool | None = option(
        None, "trades: the clean forward twice, as published (one more batch-norm update)", "loss"
    )


class FilledSettings(Protocol):
    """`MethodSettings` for a method that is being built: what it has is not None any more.

    Read-only, for type checkers. What the method lacks is still None; it does not look there.
    """

    @property
    def eps(self) -> float: ...
    @property
    def step_size(self) -> float: ...
    @property
    def steps(self) -> int: ...
    @property
    def clamp_start(self) -> bool: ...
    @property
    def attack_bn(self) -> str: ...
    @property
    def noise_ratio(self) -> float: ...
    @property
    def replays(self) -> int: ...
    @property
    def delta_gradient(self) -> str: ...
    @property
    def alpha(self) -> float: ...
    @property
    def alpha2(self) -> float: ...
    @property
    def beta(self) -> float: ...
    @property
    def temperature(self) -> float: ...
    @property
    def reduction(self) -> str: ...
    @property
    def begin_share(self) -> float: ...
    @property
    def trust_power(self) -> float: ...
    @property
    def trust_teacher(self) -> bool: ...
    @property
    def balance_rate(self) -> float: ...
    @property
    def temperature_product(self) -> bool: ...
    @property
    def fairness_power(self) -> float: ...
    @property
    def igdm_weight(self) -> float: ...
    @property
    def entropy_scale(self) -> float: ...
    @property
    def clean_branch(self) -> bool: ...
    @property
    def repeat_clean(self) -> bool: ...
