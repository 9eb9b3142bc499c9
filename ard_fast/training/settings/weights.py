"""What any method's training may do to the weights besides updating them."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.training.averaging import AVERAGINGS
from ard_fast.training.options import option


@dataclass(frozen=True)
class WeightSettings:
    """Adversarial weight perturbation and averages of the weights."""

    awp_gamma: float = option(
        0.0,
        "adversarial weight perturbation before each update, relative to each weight's norm (0.01 for at, 0.005 for "
        "trades in its paper); 0: none",
        "weights",
    )
    awp_warmup_share: float = option(0.05, "share of the epochs before it begins", "weights")
    averaging: str = option(
        "none",
        "validate, keep and test an average of the weights: swa (of the epochs' ends) or ema (of the updates)",
        "weights",
        ("none", *AVERAGINGS),
    )
    ema_decay: float = option(
        0.999, "decay of ema, (1 + n) / (10 + n) at the n-th update where that is less", "weights"
    )
    averaging_start_share: float = option(0.5, "share of the epochs before the averaging begins", "weights")
