// The distillation loss and its gradient in one pass over the logits: a warp a row up to 1,024
// classes, a block a row beyond. Each row is read from memory once and kept in shared memory for
// the passes that kd_math.h asks for; only rows too long for that are read again (from L2, as a
// rule).
#pragma once

#include "core/half.h"
#include "core/kd_math.h"
#include "core/params.h"
#include "cuda/ce_row.cuh"
#include "cuda/launch_plan.h"
#include "cuda/reduce.cuh"
#include "cuda/row_loop.cuh"

namespace ard::cuda {

template <typename T, int kVec, bool kCached, typename Group>
__device__ float kd_row_loss(const KdLossParams& p, Group& group, int64_t index, T* staged) {
  const T* student = static_cast<const T*>(p.student) + index * p.student_stride;
  const T* teacher = static_cast<const T*>(p.teacher) + index * p.teacher_stride;
  constexpr int64_t kAlign = 16 / int64_t(sizeof(T));
  T* staged_student = staged;
  T* staged_teacher = staged + (p.classes + kAlign - 1) / kAlign * kAlign;

  Largest top{-INFINITY, 0};
  ARD_FOR_VECTORS(c, p.classes) {
    const Vec<T, kVec> s = load_vec<kVec>(student + c);
    const Vec<T, kVec> t = load_vec<kVec>(teacher + c);
    if constexpr (kCached) {
      store_vec<kVec>(staged_student + c, s);
      store_vec<kVec>(staged_teacher + c, t);
    }
#pragma unroll
    for (int j = 0; j < kVec; ++j) top = larger(top, Largest{to_float(t.v[j]), int(c) + j});
  }
  top = group.largest(top);
  KdRow row = kd_row_begin(to_float(student[top.index]), top.value, p.inv_temperature);

  KdSums sums{0.0f, 0.0f, -INFINITY, INFINITY};
  ARD_FOR_VECTORS(c, p.classes) {
    const Vec<T, kVec> s = row_vec<kVec, kCached>(student, staged_student, c);
    const Vec<T, kVec> t = row_vec<kVec, kCached>(teacher, staged_teacher, c);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      float gap;
      const KdWeighed e = kd_weigh(row, to_float(s.v[j]), to_float(t.v[j]), gap);
      sums.weight += e.weight;
      sums.weighted_gap += e.weight * e.gap;
      sums.max_gap = max_or_second(gap, sums.max_gap);
      sums.min_gap = min_or_second(gap, sums.min_gap);
    }
  }
  sums.weight = group.reduce(sums.weight, SumOp());
  sums.weighted_gap = group.reduce(sums.weighted_gap, SumOp());
  sums.max_gap = group.reduce(sums.max_gap, MaxOp());
  sums.min_gap = group.reduce(sums.min_gap, MinOp());

  // From here on the range of the row, the same for all its threads, decides.
  if (!kd_row_set_sums(row, sums)) {
    float max_a = -INFINITY;
    ARD_FOR_VECTORS(c, p.classes) {
      const Vec<T, kVec> s = row_vec<kVec, kCached>(student, staged_student, c);
#pragma unroll
      for (int j = 0; j < kVec; ++j) max_a = max_or_second(kd_scaled(row, to_float(s.v[j])), max_a);
    }
    kd_row_set_range(row, group.reduce(max_a, MaxOp()));
  }

  float sum = 0.0f;
  ARD_FOR_VECTORS(c, p.classes) {
    const Vec<T, kVec> s = row_vec<kVec, kCached>(student, staged_student, c);
    const Vec<T, kVec> t = row_vec<kVec, kCached>(teacher, staged_teacher, c);
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      if (row.range == KdRange::far) {
        sum += kd_far_weight(row, kd_scaled(row, to_float(s.v[j])));
      } else {
        sum += kd_term(row, to_float(s.v[j]), to_float(t.v[j])).term;
      }
    }
  }
  const float kl = kd_row_finish(row, group.reduce(sum, SumOp()));

  if (p.grad_student) {
    T* grad = static_cast<T*>(p.grad_student) + index * p.classes;
    const float close_weight = p.kl_grad_weight / (1.0f + row.excess);
    ARD_FOR_VECTORS(c, p.classes) {
      const Vec<T, kVec> s = row_vec<kVec, kCached>(student, staged_student, c);
      const Vec<T, kVec> t = row_vec<kVec, kCached>(teacher, staged_teacher, c);
      Vec<T, kVec> out;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        float value;
        if (row.range == KdRange::far) {
          float gap;
          const KdWeighed e = kd_weigh(row, to_float(s.v[j]), to_float(t.v[j]), gap);
          value = kd_far_grad(row, e.a, e.weight) * p.kl_grad_weight;
        } else {
          const KdTerm e = kd_term(row, to_float(s.v[j]), to_float(t.v[j]));
          value = kd_close_grad(row, e.q, e.diff) * close_weight;
        }
        out.v[j] = from_float<T>(value);
      }
      store_vec<kVec>(grad + c, out);
    }
  }
  if (p.grad_teacher) {
    T* grad = static_cast<T*>(p.grad_teacher) + index * p.classes;
    ARD_FOR_VECTORS(c, p.classes) {
      const Vec<T, kVec> s = row_vec<kVec, kCached>(student, staged_student, c);
      const Vec<T, kVec> t = row_vec<kVec, kCached>(teacher, staged_teacher, c);
      Vec<T, kVec> out;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        float gap;
        const KdWeighed e = kd_weigh(row, to_float(s.v[j]), to_float(t.v[j]), gap);
        out.v[j] = from_float<T>(kd_teacher_grad(row, e.gap, e.weight) * p.kl_grad_weight);
      }
      store_vec<kVec>(grad + c, out);
    }
  }
  return kl;
}

template <typename T, int kVec, bool kCached, typename Group>
__device__ __forceinline__ void kd_loss_of_row(const KdLossParams& p, Group& group, int64_t index,
                                               T* staged) {
  float loss = p.kl_weight * kd_row_loss<T, kVec, kCached>(p, group, index, staged);
  if (p.clean) {
    T* grad = p.grad_clean ? static_cast<T*>(p.grad_clean) + index * p.classes : nullptr;
    loss += p.ce_weight * ce_row_loss<T, kVec, kCached>(
                              static_cast<const T*>(p.clean) + index * p.clean_stride, p.classes,
                              p.labels[index], staged, p.ce_grad_weight, grad, nullptr, group);
  }
  if (group.rank() == 0) p.loss_rows[index] = loss;
}

template <typename T, int kVec>
__global__ void __launch_bounds__(32 * kWarpsPerBlock) kd_loss_warp_kernel(KdLossParams p) {
  ARD_DYNAMIC_SHARED(T, shared);
  const int warp = int(threadIdx.x) / 32;
  const int64_t index = int64_t(blockIdx.x) * kWarpsPerBlock + warp;
  if (index >= p.batch) return;
  constexpr int64_t kAlign = 16 / int64_t(sizeof(T));
  const int64_t padded = (p.classes + kAlign - 1) / kAlign * kAlign;
  WarpGroup group;
  kd_loss_of_row<T, kVec, true>(p, group, index, shared + warp * 2 * padded);
}

template <typename T, int kVec, bool kCached>
__global__ void __launch_bounds__(1024) kd_loss_block_kernel(KdLossParams p) {
  ARD_DYNAMIC_SHARED(T, shared);
  __shared__ BlockScratch scratch;
  BlockGroup group(scratch);
  kd_loss_of_row<T, kVec, kCached>(p, group, int64_t(blockIdx.x), shared);
}

// The sum of all row losses, in double and in a fixed order, by one block.
__global__ void __launch_bounds__(1024)
    sum_rows_kernel(const float* rows, int64_t count, float* total) {
  __shared__ double sums[32];
  double mine = 0.0;
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) mine += double(rows[i]);
  mine = warp_reduce(mine, SumOp());
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    double all = 0.0;
    for (int w = 0; w < int(blockDim.x) / 32; ++w) all += sums[w];
    *total = float(all);
  }
}

constexpr int kScaleThreads = 256;

// grad[i] *= factor * scale of its row. The product is read on the device: 1, as after a plain
// loss.backward(), costs a launch and no traffic, and nobody had to ask the host.
template <typename T, int kVec>
__global__ void __launch_bounds__(kScaleThreads)
    scale_rows_kernel(T* grad, int64_t numel, int64_t classes, const float* scale, bool per_row,
                      float factor) {
  const int64_t i = (int64_t(blockIdx.x) * kScaleThreads + threadIdx.x) * kVec;
  if (i >= numel) return;
  const float by = factor * scale[per_row ? i / classes : 0];
  if (by == 1.0f) return;
  Vec<T, kVec> values = load_vec<kVec>(grad + i);
#pragma unroll
  for (int j = 0; j < kVec; ++j) values.v[j] = from_float<T>(to_float(values.v[j]) * by);
  store_vec<kVec>(grad + i, values);
}

}  // namespace ard::cuda
