"""The formulas in plain torch: what the fused operators are tested and measured against.

Same signatures as `ard_fast.functional`, except that steps and selections return new tensors and `attack_gradient` the
gradient alone. Any floating dtype; in float64 the losses serve as ground truth.
"""

from ard_fast.reference.layers import affine_relu, affine_relu_backward, fold_batch_norm, pack_mask, unpack_mask
from ard_fast.reference.losses import (
    ard_loss,
    attack_gradient,
    attack_loss,
    kl_distill_loss,
    mart_loss,
    rslad_loss,
    trades_loss,
)
from ard_fast.reference.starts import crop_flip, draw_views, philox_bits, philox_uniform, random_start
from ard_fast.reference.steps import APGDIterate, apgd_step, mifgsm_step, pgd_l2_step, pgd_linf_step, select_best

__all__ = [
    "APGDIterate",
    "affine_relu",
    "affine_relu_backward",
    "apgd_step",
    "ard_loss",
    "attack_gradient",
    "attack_loss",
    "crop_flip",
    "draw_views",
    "fold_batch_norm",
    "kl_distill_loss",
    "mart_loss",
    "mifgsm_step",
    "pack_mask",
    "pgd_l2_step",
    "pgd_linf_step",
    "philox_bits",
    "philox_uniform",
    "random_start",
    "rslad_loss",
    "select_best",
    "trades_loss",
    "unpack_mask",
]
