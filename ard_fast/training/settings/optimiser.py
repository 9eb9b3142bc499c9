"""How the weights are updated."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.training.options import option


@dataclass(frozen=True)
class OptimiserSettings:
    """SGD, its schedule and the length of training."""

    epochs: int = option(200, "passes over the training images, replays counted", "optimiser")
    batch_size: int = option(128, "images a step, over all processes and micro-batches", "optimiser")
    accumulate: int = option(
        1, "micro-batches a step, whose gradients add up to the whole batch's; saves memory", "optimiser"
    )
    lr: float | None = option(None, "learning rate of SGD at the start; default the method's", "optimiser")
    momentum: float = option(0.9, "momentum of SGD", "optimiser")
    nesterov: bool = option(False, "Nesterov's form of the momentum", "optimiser")
    weight_decay: float = option(2e-4, "weight decay, on every parameter", "optimiser")
    schedule: str | None = option(
        None,
        "default multistep, except that --parity may say otherwise; multistep: x lr_factor at each milestone; ard: as "
        "published, where every drop after the first is a no-op; "
        "cosine: to zero; cyclic: up to lr at half, down to zero; constant",
        "optimiser",
        ("multistep", "ard", "cosine", "cyclic", "constant"),
    )
    milestones: tuple[int, ...] | None = option(
        None, "epochs at which the rate drops, comma-separated; default 1/2 and 3/4 of the epochs", "optimiser"
    )
    lr_factor: float = option(0.1, "what a milestone multiplies the learning rate by", "optimiser")
