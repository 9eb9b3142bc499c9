// Which kernel variant runs on how many blocks: plain arithmetic on the params, shared by the CUDA
// launchers and the host emulator so that the emulator runs what a GPU would.
#pragma once

#include "core/half.h"
#include "core/params.h"
#include "cuda/rows.h"

namespace ard::cuda {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool aligned16(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

struct PgdLinfPlan {
  bool vector;
  int64_t head;  // elements before the first vector
  int64_t vectors;
  int64_t blocks;
};

// grad_size: bytes of one gradient element.
inline PgdLinfPlan plan_pgd_linf_step(const PgdLinfParams& p, int grad_size, int threads) {
  const int vec = 16 / grad_size;
  const bool per_sample = p.step_size_per_sample || p.eps_per_sample;
  // Skip to the first 16-byte boundary of the gradient; the pixels must then be on one as well.
  const int64_t head = int64_t((16 - reinterpret_cast<uintptr_t>(p.grad) % 16) % 16) / grad_size;
  const bool reaches =
      head < p.numel && aligned16(static_cast<const char*>(p.grad) + head * grad_size);
  const bool together = reaches && aligned16(p.x_adv + head) && aligned16(p.x + head);
  const bool within_samples = !per_sample || (head == 0 && p.sample_numel % vec == 0);
  if (!together || !within_samples) return {false, 0, 0, ceil_div(p.numel, threads)};
  const int64_t vectors = (p.numel - head) / vec;
  return {true, head, vectors, ceil_div(vectors + (p.numel - vectors * vec), threads)};
}

struct RandomStartPlan {
  bool vector;
  int64_t blocks;
};

inline RandomStartPlan plan_random_start(const RandomStartParams& p, int threads) {
  const bool vector =
      p.channels == 1 && p.sample_numel % 4 == 0 && aligned16(p.x) && aligned16(p.out);
  return {vector, ceil_div(p.batch * ceil_div(p.sample_numel, 4), threads)};
}

// Of a kernel over rows of logits.
struct RowPlan {
  bool warp;    // a warp a row, else a block a row
  bool vector;  // 16-byte loads
  bool cached;  // block only: the row stays in shared memory between its passes
  int threads;  // of a block
  int64_t blocks;
  int64_t shared_bytes;
};

constexpr int64_t kWarpRowClasses = 1024;

// Everything but `vector`. row_bytes: what a row keeps in shared memory, of max_shared that one
// block may have.
inline void plan_rows(RowPlan& plan, int64_t batch, int64_t classes, int64_t row_bytes,
                      int64_t max_shared) {
  if (classes <= kWarpRowClasses) {
    plan.warp = plan.cached = true;
    plan.threads = 32 * kWarpsPerBlock;
    plan.blocks = ceil_div(batch, kWarpsPerBlock);
    plan.shared_bytes = kWarpsPerBlock * row_bytes;
    return;
  }
  plan.threads = classes <= 8192 ? 256 : classes <= 32768 ? 512 : 1024;
  plan.blocks = batch;
  plan.cached = row_bytes <= max_shared;
  plan.shared_bytes = plan.cached ? row_bytes : 0;
}

// max_shared: shared memory that one block may have, in bytes. item_size: bytes of one logit.
inline RowPlan plan_kd_loss(const KdLossParams& p, int item_size, int64_t max_shared) {
  const int vec = 16 / item_size;
  const auto rows_aligned = [&](const void* data, int64_t stride) {
    return !data || (aligned16(data) && stride % vec == 0);
  };
  RowPlan plan{};
  plan.vector = p.classes % vec == 0 && rows_aligned(p.student, p.student_stride) &&
                rows_aligned(p.teacher, p.teacher_stride) &&
                rows_aligned(p.clean, p.clean_stride) && rows_aligned(p.grad_student, p.classes) &&
                rows_aligned(p.grad_clean, p.classes) && rows_aligned(p.grad_teacher, p.classes);
  const int64_t row_bytes = 2 * ceil_div(p.classes * item_size, 16) * 16;  // student and teacher
  plan_rows(plan, p.batch, p.classes, row_bytes, max_shared);
  return plan;
}

// Of the one block that sums the row losses.
inline int sum_rows_threads(int64_t rows) { return rows <= 32 ? 32 : rows <= 256 ? 256 : 1024; }

struct ScaleRowsPlan {
  bool vector;
  int64_t blocks;
};

inline ScaleRowsPlan plan_scale_rows(const void* grad, int64_t numel, int64_t classes,
                                     int item_size, bool per_row, int threads) {
  const int vec = 16 / item_size;
  const bool vector = aligned16(grad) && (per_row ? classes : numel) % vec == 0;
  return {vector, ceil_div(numel, int64_t(threads) * (vector ? vec : 1))};
}

}  // namespace ard::cuda
