"""Networks for images of CIFAR size and for the 8x8 digits; `build_model` makes one by name.

All return logits `[B, num_classes]` from pixels in [0, 1]; none normalises its input, as in the ARD paper's code.
"""

from ard_fast.models.registry import MODELS, ModelSpec, build_model, count_parameters

__all__ = ["MODELS", "ModelSpec", "build_model", "count_parameters"]
