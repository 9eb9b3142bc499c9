"""The operators: fused attack steps and distillation losses on CPU and CUDA tensors.

Conventions: B is the batch size, C the number of classes. Pixel tensors are `[B, ...]`, float32, in the units of
`bounds` (0 to 1 by default), as are eps and step sizes. No function waits for the GPU or allocates outside torch's
allocator, so all can be captured in a CUDA graph.

A loss takes the logits of the trained network by position and all other logits and labels by name, because papers and
implementations differ in their order and a wrong order would run. `kl_distill_loss(student_logits, teacher_logits)` and
`attack_gradient(logits, target)` have the order of torch's losses.

Special values: the losses and `attack_gradient` give what torch computes in float64, rounded, on every device.

- NaN in a row of logits makes its loss and its gradients NaN, as do a logit of +inf and a row of -inf alone, except in
  margin and DLR, which take only differences.
- A logit of -inf is a class of probability 0, and 0 * log 0 = 0, where torch gives NaN. If the teacher gives
  probability to such a class of the student, the KL is inf, with a finite gradient for the student and inf or NaN for
  the teacher.
- Finite logits never give NaN otherwise. Differences and sums beyond the range of float32 count as infinite.
- Teacher probabilities below e^-87 of the largest count as 0.
- Weights of samples follow IEEE 754: an infinite loss times 0 is NaN.

Arrays of NumPy, CuPy and other libraries with DLPack can be passed in place of tensors, without a copy. In-place
functions (their names end in `_`) write into the array; results are torch tensors.

    >>> x, grad = numpy.full((1, 3), 0.5, numpy.float32), numpy.ones((1, 3), numpy.float32)
    >>> F.pgd_linf_step_(x, grad, x.copy(), step_size=0.25, eps=0.5)
    tensor([[0.7500, 0.7500, 0.7500]])
    >>> x
    array([[0.75, 0.75, 0.75]], dtype=float32)

Not accepted: objects that are neither tensor nor array (TypeError), arrays that torch cannot represent, such as
negative strides or unaligned elements (RuntimeError), and read-only arrays that would be written to (ValueError). GPU
arrays are used on torch's current stream, which waits for work that their library has queued; work that the library
queues later on another stream does not wait for torch. Under `torch.compile` pass tensors.
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
