"""Clean and robust accuracy: what the trainer measures, and what `python -m ard_fast.evaluate` runs."""

from ard_fast.evaluation.measure import EVALUATION_SEED, PGD20_STEPS, Accuracy, evaluate

__all__ = ["EVALUATION_SEED", "PGD20_STEPS", "Accuracy", "evaluate"]
