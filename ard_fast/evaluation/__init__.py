"""Clean and robust accuracy: what the trainer measures, and what `python -m ard_fast.evaluate` runs."""

from ard_fast.evaluation.measure import PGD20_STEPS, Accuracy, evaluate
from ard_fast.evaluation.results import EVALUATION_SEED

__all__ = ["EVALUATION_SEED", "PGD20_STEPS", "Accuracy", "evaluate"]
