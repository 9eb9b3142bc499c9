"""The operators: fused attack steps and distillation losses on CPU and CUDA tensors.

Conventions, everywhere: B batch, C classes. Pixel tensors are `[B, ...]`, float32, in units where the full range is
`bounds` (0 to 1 by default); eps and step sizes are in the same units. No function waits for the GPU or allocates
behind torch's back, so all of them can be captured in a CUDA graph.
"""

from ard_fast.functional.affine import affine_relu, affine_relu_, affine_relu_backward
from ard_fast.functional.apgd import APGDRun, checkpoint_windows
from ard_fast.functional.augmentation import crop_flip
from ard_fast.functional.gradients import AttackGradient, attack_gradient
from ard_fast.functional.losses import ard_loss, kl_distill_loss, rslad_loss
from ard_fast.functional.pair_losses import mart_loss, trades_loss
from ard_fast.functional.selection import select_best_
from ard_fast.functional.starts import random_start
from ard_fast.functional.steps import mifgsm_step_, pgd_l2_step_, pgd_linf_step_

__all__ = [
    "APGDRun",
    "AttackGradient",
    "affine_relu",
    "affine_relu_",
    "affine_relu_backward",
    "ard_loss",
    "attack_gradient",
    "checkpoint_windows",
    "crop_flip",
    "kl_distill_loss",
    "mart_loss",
    "mifgsm_step_",
    "pgd_l2_step_",
    "pgd_linf_step_",
    "random_start",
    "rslad_loss",
    "select_best_",
    "trades_loss",
]
