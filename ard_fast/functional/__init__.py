"""The operators: fused attack steps and distillation losses on CPU and CUDA tensors.

Conventions, everywhere: B batch, C classes. Pixel tensors are `[B, ...]`, float32, in units where the full range is
`bounds` (0 to 1 by default); eps and step sizes are in the same units. No function waits for the GPU or allocates
behind torch's back, so all of them can be captured in a CUDA graph.

Of several logits and labels a loss takes only the first by position, those of the trained network, and the others by
name: papers and codes differ in their order, and a wrong one would run. `kl_distill_loss(student_logits,
teacher_logits)` and `attack_gradient(logits, target)` have the order of torch's losses.

Special values: the losses and `attack_gradient` give what torch computes in float64, rounded, on every device. A row
with a NaN logit has a NaN loss and NaN throughout its gradients. So has a row with a logit of +inf, or with all of them
-inf, but for margin and DLR, which are what their differences are. A logit of -inf is a class of probability 0, and
0 * log 0 = 0, of which torch makes NaN. Where the teacher allows a class that the student excludes, the KL is inf, with
a finite gradient for the student and inf or NaN in the teacher's. Finite logits give no other NaN: a difference of
logits, or a sum of these, that float32 cannot hold counts as infinite, and the loss may be inf where float64 has a
number. Teacher probabilities below e^-87 of the largest count as 0. A sample's weight multiplies its row by the rules
of IEEE 754: an infinite loss times 0 is NaN.

Arrays of NumPy, CuPy and other libraries that speak DLPack serve wherever a tensor does, without a copy: a function
that writes in place (its name ends in `_`) writes into the array given, and results are torch tensors.

    >>> x, grad = numpy.full((1, 3), 0.5, numpy.float32), numpy.ones((1, 3), numpy.float32)
    >>> F.pgd_linf_step_(x, grad, x.copy(), step_size=0.25, eps=0.5)
    tensor([[0.7500, 0.7500, 0.7500]])
    >>> x
    array([[0.75, 0.75, 0.75]], dtype=float32)

Refused, by name: with a TypeError what is neither tensor nor array, with a RuntimeError an array that torch cannot hold
(negative strides, dtypes of its own, elements that are not aligned), with a ValueError a read-only array where it would
be written to. An array on a GPU is handed over on torch's current stream, which waits for what its library has queued;
work that the library queues later on another stream is not made to wait for torch. Arrays are for eager code: under
`torch.compile` pass tensors.
"""

from ard_fast.functional.affine import affine_relu, affine_relu_, affine_relu_backward
from ard_fast.functional.apgd import APGDRun, checkpoint_windows
from ard_fast.functional.augmentation import crop_flip
from ard_fast.functional.gradients import AttackGradient, attack_gradient
from ard_fast.functional.losses import ard_loss, kl_distill_loss, mart_loss, rslad_loss, trades_loss
from ard_fast.functional.starts import random_start
from ard_fast.functional.steps import mifgsm_step_, pgd_l2_step_, pgd_linf_step_, select_best_

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
