"""The tolerances of the numeric tests, once."""

import torch

# The losses accumulate in float32 whatever the logits' dtype: one relative tolerance for all.
LOSS_RTOL = 2e-5
# Of a gradient row's largest entry: float32 arithmetic, then one rounding to the logits' dtype. float16 is rounded
# twice: once leaving the kernel, once scaled.
GRAD_RTOL = {torch.float32: 1e-4, torch.bfloat16: 8e-3, torch.float16: 2e-3}
