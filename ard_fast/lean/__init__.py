"""Networks in the form that computes least: what an attack or a teacher needs of one, and nothing else."""

from ard_fast.lean.network import FoldedNetwork
from ard_fast.lean.views import Unfoldable
from ard_fast.lean.weights import FoldedWeights, FoldLayer

__all__ = ["FoldLayer", "FoldedNetwork", "FoldedWeights", "Unfoldable"]
