// The module _C: the one schema block of the package. The CPU implementations register themselves
// in the *_ops.cpp files.
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <string>

#include "common/operators.h"
#include "common/simd.h"

namespace ard {
namespace {

std::string simd_level() { return cpu::simd_level(); }

}  // namespace
}  // namespace ard

// An argument at its default that is left out of a call costs it a quarter of one that is given.
STABLE_TORCH_LIBRARY(ARD_LIBRARY, m) {
  // `levels`: each pixel of the result is k / levels for a whole number k; 0 for any value.
  m.def(
      "pgd_linf_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, float step_size, float eps, "
      "bool targeted=False, float lower=0, float upper=1, int levels=0, "
      "Tensor? step_size_per_sample=None, Tensor? eps_per_sample=None) -> ()");
  m.def(
      "random_start(Tensor x, Tensor? eps_per_sample, float eps, Tensor seed, Tensor? sample_ids, "
      "bool normal, float std, bool clamp, float lower, float upper, int levels=0) -> Tensor");
  // Row loss: weight * (kl_weight * KL(teacher || student) + clean_weight * L), where L is the
  // cross-entropy of `clean` when labels are given and KL(teacher || clean) when they are not. The
  // gradients come unscaled by any incoming one, with weights of their own (kl_grad_weight is the
  // teacher's too); they are None without `with_grad` or `with_teacher_grad`. `scaled`, without
  // `clean`: each row of them times a power of two, returned [B], that brings the largest entry of
  // grad_student into [1, 2).
  m.def(
      "kd_loss(Tensor student, Tensor teacher, Tensor? clean, Tensor? labels, Tensor? weight, "
      "Tensor? teacher_temperature_per_sample, Tensor? clean_teacher_temperature_per_sample, "
      "float temperature, float teacher_temperature, float clean_teacher_temperature, "
      "float kl_weight, float clean_weight, float kl_grad_weight, float clean_grad_weight, "
      "bool reduce, bool with_grad, bool with_teacher_grad, bool scaled=False) -> (Tensor loss, "
      "Tensor grad_student, Tensor grad_clean, Tensor grad_teacher, Tensor grad_scale)");
  // TRADES: weight * (ce_weight * CE(clean) + kl_weight * KL(clean || adv)); MART: the boosted
  // cross-entropy of adv for the first term, and the second times 1 - p_label(clean). The gradients
  // as those of kd_loss.
  m.def(
      "pair_loss(Tensor adv, Tensor clean, Tensor labels, Tensor? weight, bool mart, "
      "float kl_weight, float ce_weight, float kl_grad_weight, float ce_grad_weight, bool reduce, "
      "bool with_grad) -> (Tensor loss, Tensor grad_adv, Tensor grad_clean)");
  // grad[i] *= factor * scale[i], leaving rows untouched where the product is 1.
  m.def("scale_rows_(Tensor(a!) grad, Tensor scale, float factor) -> ()");
  // d(loss)/d(logits) of the batch's summed loss; loss: ce 0, margin 1, dlr 2, dlr_targeted 3. The
  // rows (loss [B], and whether the label is the largest logit) are None without `with_rows`.
  // `scaled`: each row of grad times a power of two, returned [B], that brings its largest entry
  // into [1, 2).
  m.def(
      "attack_gradient(Tensor logits, Tensor labels, int loss, Tensor? target_classes=None, "
      "float kappa=50, bool with_rows=False, bool scaled=False) -> (Tensor grad, "
      "Tensor loss_rows, Tensor correct, Tensor grad_scale)");
  m.def(
      "pgd_l2_step_(Tensor(a!) x_adv, Tensor grad, Tensor x, Tensor? step_size_per_sample, "
      "Tensor? eps_per_sample, float step_size, float eps, bool targeted, float lower, "
      "float upper) -> ()");
  m.def(
      "mifgsm_step_(Tensor(a!) x_adv, Tensor(b!) momentum, Tensor grad, Tensor x, "
      "Tensor? step_size_per_sample, Tensor? eps_per_sample, float step_size, float eps, "
      "float decay, bool targeted, float lower, float upper, int levels=0) -> ()");
  // Takes the loss at x_adv into account and, given its gradient, writes the next iterate over
  // x_prev. `window`: iterations since the last checkpoint if this is one, else 0.
  m.def(
      "apgd_step_(Tensor(a!) x_adv, Tensor(b!) x_prev, Tensor(c!) x_best, Tensor(d!) grad_best, "
      "Tensor(e!) x_fooled, Tensor state, Tensor(f!) state_out, Tensor? grad, Tensor x, "
      "Tensor loss_rows, Tensor correct, Tensor? eps_per_sample, float eps, bool l2, bool first, "
      "int window, float rho, float momentum, float lower, float upper, int levels=0) -> ()");
  // Per sample: keeps best, or takes candidate where its loss is higher (`lower`: lower).
  m.def(
      "select_best_(Tensor(a!) best, Tensor candidate, Tensor best_loss, Tensor loss, "
      "Tensor(b!) best_loss_out, bool lower) -> ()");
  // Pixels in [0, 1] and views of the images at `positions`: drawn from (seed, id of the image), or
  // the given ones.
  m.def(
      "crop_flip(Tensor images, Tensor positions, Tensor? seed, Tensor? ids, Tensor? views, "
      "int padding, bool flip, int levels, bool channels_last, int cropshift=0, int cutout=0) -> "
      "(Tensor x, Tensor view)");
  // Eval-mode batch norms into the convolutions before them, of all layers at once. Of each layer,
  // tensors: weight, bias, gamma, beta, mean, var; places: the first elements of its folded weight
  // (channels_last) among `weights`, and of its scale (a norm alone) and shift among `affine`.
  m.def(
      "fold_batch_norm_(Tensor(a!) weights, Tensor(b!) affine, Tensor?[] tensors, float[] eps, "
      "int[] places) -> ()");
  // max(0 with relu, x * scale[c] + shift[c] + residual), and where it is above 0 (or NaN): a bit
  // an element in memory order, none unless asked for.
  m.def(
      "affine_relu(Tensor x, Tensor? scale, Tensor? shift, Tensor? residual, bool relu, bool mask) "
      "-> (Tensor y, Tensor mask)");
  m.def(
      "affine_relu_(Tensor(a!) x, Tensor? scale, Tensor? shift, Tensor? residual, bool relu, "
      "bool mask) -> Tensor mask");
  m.def("affine_relu_backward(Tensor grad, Tensor? mask, Tensor? scale) -> Tensor");
  m.def("simd_level() -> str");
}

#if !defined(ARD_EMULATED)
STABLE_TORCH_LIBRARY_IMPL(ARD_LIBRARY, CompositeExplicitAutograd, m) {
  m.impl("simd_level", TORCH_BOX(&ard::simd_level));
}

// An empty module: importing it runs the registrations above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef module = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&module);
}
#endif
