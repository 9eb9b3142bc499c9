"""Validation while a run trains, and the test at its end."""

from __future__ import annotations

from dataclasses import dataclass

from ard_fast.training.options import option


@dataclass(frozen=True)
class EvaluationSettings:
    """The attacks that select the best epoch and that test it."""

    eval_step_size: float | None = option(
        None, "step of the evaluation attacks (PGD-20 on the test images); default eps/4", "evaluation"
    )
    val_steps: int = option(
        10, "steps of the attack on the validation images that selects the best epoch", "evaluation"
    )
    val_every: int = option(1, "epochs between two validations", "evaluation")
    eval_batch_size: int = option(500, "images a batch in evaluations", "evaluation")
