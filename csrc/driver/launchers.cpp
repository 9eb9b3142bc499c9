// All launchers of the module _C_rtc in one source: they are small, and each alone would read the
// same headers again.
#include "cuda/affine_cuda.cu"
#include "cuda/apgd_l2_cuda.cu"
#include "cuda/apgd_linf_cuda.cu"
#include "cuda/attack_gradient_cuda.cu"
#include "cuda/crop_flip_cuda.cu"
#include "cuda/fold_cuda.cu"
#include "cuda/kd_loss_cuda.cu"
#include "cuda/norm_cuda.cu"
#include "cuda/pair_loss_cuda.cu"
#include "cuda/pgd_cuda.cu"
