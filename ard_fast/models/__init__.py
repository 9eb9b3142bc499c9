"""Networks for images of CIFAR size and for the 8x8 digits; `build_model` makes one by name.

All return logits `[B, num_classes]` from pixels in [0, 1]. Those of the ARD papers do not normalise their input; the
`dm-` networks do, and `Normalised` does it for any other.
"""

from ard_fast.models.published import Matched, Normalised, match_published
from ard_fast.models.registry import MODELS, ModelSpec, build_model, count_parameters, find_model

__all__ = [
    "MODELS",
    "Matched",
    "ModelSpec",
    "Normalised",
    "build_model",
    "count_parameters",
    "find_model",
    "match_published",
]
