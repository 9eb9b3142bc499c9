"""Networks in eval mode with folded batch norms: what an attack or a teacher needs of one, and nothing else."""

from ard_fast.folding.network import FoldedNetwork
from ard_fast.folding.trace import Unfoldable
from ard_fast.folding.weights import FoldedWeights, FoldLayer

__all__ = ["FoldLayer", "FoldedNetwork", "FoldedWeights", "Unfoldable"]
