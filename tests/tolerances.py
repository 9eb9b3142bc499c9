"""The tolerances of the numeric tests, once."""

import torch

# The losses accumulate in float32 whatever the logits' dtype: one relative tolerance for all.
LOSS_RTOL = 2e-5
# Of a gradient row's largest entry: float32 arithmetic, then one rounding to the logits' dtype. float16 is rounded
# twice: once leaving the kernel, once scaled.
GRAD_RTOL = {torch.float32: 1e-4, torch.bfloat16: 8e-3, torch.float16: 2e-3}

# Two codes of one signed attack, of some dozen steps on 8x8 images. Rounding gives a gradient's entries errors of about
# 1e-6 of the largest, and the sign of an entry below that is either; 64 entries in 10 to 50 steps make it a few images
# of a hundred (at most 20 of 500, eight networks on AVX-512, AVX2 and SSE2). A wrong formula changes nearly all.
TURNED_IMAGES = 0.1
# What those may do to the mean loss: by 1 % each, since what turned was a pixel with next to no gradient.
TURNED_LOSS_RTOL = 1e-3
# Steps along the gradient's direction turn with it: images are near, not equal. At the end the loss is stationary on
# the sphere, so that it is nearer than they are: to 6e-6 there.
DIRECTION_LOSS_RTOL = 5e-5

# Weights after the eight updates of tests/training/test_distributed.py, which move them by 0.2. Sums in another order
# are some 1e-5 of that; the smallest mistake there is to find, noise drawn for other images, is 2e-2.
SAME_RUN_ATOL = 1e-3
