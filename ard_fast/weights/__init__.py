"""What any method's training may do to the weights: perturb them adversarially, average them."""

from ard_fast.weights.averaging import AVERAGINGS, WeightAverage
from ard_fast.weights.awp import AdversarialWeightPerturbation

__all__ = ["AVERAGINGS", "AdversarialWeightPerturbation", "WeightAverage"]
