// Runs every kernel that has a barrier once and lists its barriers. cmake/every_barrier.cmake runs
// it under ThreadSanitizer as it is and with each barrier left out in turn (ARD_EMU_SKIP_BARRIER).
#include <cstdio>
#include <vector>

#include "testing/kd_on_host.h"
#include "testing/pgd_on_host.h"

int main() {
  using namespace ard;
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
  p.inv_temperature = 1.0f;
  p.kl_weight = p.ce_weight = p.kl_grad_weight = p.ce_grad_weight = 1.0f;
  emu::kd_loss<float>(p, emu::block_plan<float>(p, 96, true));
  emu::kd_loss<float>(p, emu::block_plan<float>(p, 64, false));
  float total = 0.0f;
  emu::sum_rows(grad.data(), kRows * kClasses, &total);
  int index = 0;
  for (const auto& site : emu::barrier_sites())
    std::printf("barrier %d %s\n", index++, site.c_str());
  return 0;
}
