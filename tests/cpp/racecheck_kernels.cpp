// Runs every kernel that has a barrier once and lists its barriers. cmake/every_barrier.cmake runs
// it under ThreadSanitizer as it is and with each barrier left out in turn (ARD_EMU_SKIP_BARRIER).
#include <cstdio>
#include <vector>

#include "testing/attack_gradient_on_host.h"
#include "testing/kd_on_host.h"
#include "testing/norm_on_host.h"
#include "testing/pair_on_host.h"
#include "testing/pgd_on_host.h"

namespace ard {
namespace {

void run_distillation_loss() {
  constexpr int kRows = 2, kClasses = 200;
  std::vector<float> student(kRows * kClasses), teacher(kRows * kClasses), loss(kRows);
  std::vector<float> grad(kRows * kClasses), grad_clean(kRows * kClasses);
  std::vector<float> grad_teacher(kRows * kClasses);
  std::vector<int64_t> labels(kRows, 1);
  for (std::size_t i = 0; i < student.size(); ++i) {
    student[i] = static_cast<float>(i * 37 % 101) * 0.1f;
    teacher[i] = static_cast<float>(i * 53 % 97) * 0.1f;
  }
  KdLossParams p{};
  p.student = student.data();
  p.teacher = teacher.data();
  p.clean = student.data();
  p.labels = labels.data();
  p.loss_rows = loss.data();
  p.grad_student = grad.data();
  p.grad_clean = grad_clean.data();
  p.grad_teacher = grad_teacher.data();
  p.batch = kRows;
  p.classes = p.student_stride = p.teacher_stride = p.clean_stride = kClasses;
  p.inv_temperature = p.inv_teacher_temperature = p.inv_clean_teacher_temperature = 1.0f;
  p.kl_weight = p.clean_weight = p.kl_grad_weight = p.clean_grad_weight = 1.0f;
  emu::kd_loss<float>(p, emu::block_plan<float>(p, 96, true));
  emu::kd_loss<float>(p, emu::block_plan<float>(p, 64, false));
  p.labels = nullptr;  // a second student
  p.grad_teacher = nullptr;
  emu::kd_loss<float>(p, emu::block_plan<float>(p, 96, true));
  float total = 0.0f;
  emu::sum_rows(grad.data(), kRows * kClasses, &total);
}

void run_pair_loss() {
  constexpr int kRows = 2, kClasses = 200;
  std::vector<float> adv(kRows * kClasses), clean(adv.size()), loss(kRows);
  std::vector<float> grad_adv(adv.size()), grad_clean(adv.size());
  std::vector<int64_t> labels(kRows, 1);
  for (std::size_t i = 0; i < adv.size(); ++i) {
    adv[i] = static_cast<float>(i * 37 % 101) * 0.1f;
    clean[i] = static_cast<float>(i * 53 % 97) * 0.1f;
  }
  PairLossParams p{};
  p.adv = adv.data();
  p.clean = clean.data();
  p.labels = labels.data();
  p.loss_rows = loss.data();
  p.grad_adv = grad_adv.data();
  p.grad_clean = grad_clean.data();
  p.batch = kRows;
  p.classes = p.adv_stride = p.clean_stride = kClasses;
  p.kl_weight = p.ce_weight = p.kl_grad_weight = p.ce_grad_weight = 1.0f;
  for (const bool mart : {false, true}) {
    p.mart = mart;
    emu::pair_loss<float>(p, emu::pair_loss_block_plan<float>(p, 96, true));
    emu::pair_loss<float>(p, emu::pair_loss_block_plan<float>(p, 64, false));
  }
}

void run_attack_gradient() {
  constexpr int kRows = 2, kClasses = 200;
  std::vector<float> logits(kRows * kClasses), grad(logits.size()), loss(kRows);
  std::vector<int64_t> labels(kRows, 1);
  bool correct[kRows];
  for (std::size_t i = 0; i < logits.size(); ++i) {
    logits[i] = static_cast<float>(i * 37 % 101) * 0.1f;
  }
  AttackGradientParams p{};
  p.logits = logits.data();
  p.labels = labels.data();
  p.grad = grad.data();
  p.loss_rows = loss.data();
  p.correct = correct;
  p.batch = kRows;
  p.classes = p.logits_stride = kClasses;
  for (const AttackLoss which : {AttackLoss::ce, AttackLoss::dlr}) {
    p.loss = which;
    emu::attack_gradient<float>(p, emu::attack_gradient_block_plan<float>(p, 96, true));
  }
}

void run_steps_over_samples() {
  constexpr int kSamples = 2, kNumel = 300;
  std::vector<float> x_adv(kSamples * kNumel, 0.6f), grad(x_adv.size(), 0.5f);
  std::vector<float> x(x_adv.size(), 0.5f), momentum(x_adv.size(), 0.0f);
  NormStepParams p{};
  p.x_adv = x_adv.data();
  p.grad = grad.data();
  p.x = x.data();
  p.momentum = momentum.data();
  p.batch = kSamples;
  p.sample_numel = kNumel;
  p.step_size = p.eps = 0.1f;
  p.direction = p.upper = 1.0f;
  emu::pgd_l2_step<float>(p, emu::norm_step_plan<float>(p, false, 2, 64, true));
  emu::mifgsm_step<float>(p, emu::norm_step_plan<float>(p, true, 1, 64, true));
}

}  // namespace
}  // namespace ard

int main() {
  try {
    ard::run_distillation_loss();
    ard::run_pair_loss();
    ard::run_attack_gradient();
    ard::run_steps_over_samples();
  } catch (const ard::emu::LaunchError& fault) {
    std::fprintf(stderr, "%s\n", fault.what());
    return 66;  // as ThreadSanitizer
  }
  int index = 0;
  for (const auto& site : ard::emu::barrier_sites())
    std::printf("barrier %d %s\n", index++, site.c_str());
  return 0;
}
