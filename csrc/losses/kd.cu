// The distillation loss and its gradient in one pass over the logits. Each row is read from memory
// once and kept in shared memory for the passes that rows.h asks for; only rows too long for that
// are read again (from L2, as a rule).
#include "losses/kd.h"
#include "losses/rows.cuh"

namespace ard::cuda {

constexpr int kStagedFloats = 2;  // a class: student and teacher

// The KL of one student's row, with its gradient and the teacher's unless these are null. Unless
// scale is null both come times a power of two, written there, that brings the student's largest
// into [1, 2).
template <typename T, int kVec, bool kCached, typename Group>
__device__ __forceinline__ float kd_row_loss(const KlRowLogits<T>& z, float inv_temperature,
                                             float inv_teacher_temperature, float grad_weight,
                                             T* grad_student, T* grad_teacher, float* scale,
                                             Group& group) {
  KdRow row;
  KlOnly nothing;
  const float kl =
      kl_row<kVec, kCached>(z, inv_temperature, inv_teacher_temperature, group, row, nothing);
  float close_factor = 1.0f / (1.0f + row.excess);
  float factor = 1.0f;
  if (scale) {
    float largest = 0.0f;
    ARD_FOR_VECTORS(c) {
      const Vec<T, kVec> s = row_vec<kVec, kCached>(group, z.student, z.staged_student, c);
      const Vec<T, kVec> t = row_vec<kVec, kCached>(group, z.teacher, z.staged_teacher, c);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const float grad = kd_student_grad(row, to_float(s.v[j]), to_float(t.v[j]), close_factor);
        largest = max_or_second(magnitude(grad * grad_weight), largest);
      }
    }
    largest = group.reduce(largest, MaxOp());
    if (kl == kl) factor = power_of_two_to_one(largest);
    if (group.leads()) *scale = factor;
  }
  if (grad_teacher) {
    const float weight = grad_weight * (inv_teacher_temperature / inv_temperature);
    ARD_FOR_VECTORS(c) {
      const Vec<T, kVec> s = row_vec<kVec, kCached>(group, z.student, z.staged_student, c);
      const Vec<T, kVec> t = row_vec<kVec, kCached>(group, z.teacher, z.staged_teacher, c);
      Vec<T, kVec> out;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        float gap;
        const KdWeighed e = kd_weigh(row, to_float(s.v[j]), to_float(t.v[j]), gap);
        out.v[j] = from_float<T>(kd_teacher_grad(row, e.gap, e.weight) * weight * factor);
      }
      store_vec<kVec>(grad_teacher + c, out);
    }
  }
  if (grad_student) {
    if (scale) kd_scale_gradient(row, close_factor, factor);
    ARD_FOR_VECTORS(c) {
      const Vec<T, kVec> s = row_vec<kVec, kCached>(group, z.student, z.staged_student, c);
      const Vec<T, kVec> t = row_vec<kVec, kCached>(group, z.teacher, z.staged_teacher, c);
      Vec<T, kVec> out;
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        const float grad = kd_student_grad(row, to_float(s.v[j]), to_float(t.v[j]), close_factor);
        out.v[j] = from_float<T>(grad * grad_weight);
      }
      store_vec<kVec>(grad_student + c, out);
    }
  }
  return kl;
}

template <typename T>
__device__ __forceinline__ T* grad_row(void* grad, int64_t index, int64_t classes) {
  return grad ? static_cast<T*>(grad) + index * classes : nullptr;
}

template <typename T, int kVec, bool kCached, typename Group>
__device__ __forceinline__ float kd_loss_of_row(const KdLossParams& p, Group& group,
                                                float* staging) {
  const int64_t index = group.row();
  const float weight = p.weight ? p.weight[index] : 1.0f;
  KlRowLogits<T> z;
  z.student = static_cast<const T*>(p.student) + index * p.student_stride;
  z.teacher = static_cast<const T*>(p.teacher) + index * p.teacher_stride;
  z.staged_student = reinterpret_cast<T*>(staging);
  z.staged_teacher = reinterpret_cast<T*>(staging + group.room());
  z.classes = p.classes;
  z.teacher_is_staged = false;
  const float first = kd_row_loss<T, kVec, kCached>(
      z, p.inv_temperature,
      kd_inv_temperature(p.teacher_temperature, index, p.inv_teacher_temperature),
      weight * p.kl_grad_weight, grad_row<T>(p.grad_student, index, p.classes),
      grad_row<T>(p.grad_teacher, index, p.classes), p.grad_scale ? p.grad_scale + index : nullptr,
      group);
  float second = 0.0f;
  if (p.clean) {
    const T* clean = static_cast<const T*>(p.clean) + index * p.clean_stride;
    const float grad_weight = weight * p.clean_grad_weight;
    T* grad = grad_row<T>(p.grad_clean, index, p.classes);
    if (p.labels) {
      if constexpr (sizeof(T) != sizeof(float)) group.sync();  // the row was staged as T
      second = ce_row_loss<T, kVec, kCached>(clean, p.classes, p.labels[index], staging,
                                             grad_weight, grad, nullptr, nullptr, group);
    } else {
      z.student = clean;
      z.teacher_is_staged = kCached;
      second = kd_row_loss<T, kVec, kCached>(
          z, p.inv_temperature,
          kd_inv_temperature(p.clean_teacher_temperature, index, p.inv_clean_teacher_temperature),
          grad_weight, grad, static_cast<T*>(nullptr), nullptr, group);
    }
  }
  const float loss = weighted_loss(weight, p.kl_weight, first, p.clean_weight, second);
  if (group.leads()) p.loss_rows[index] = loss;
  return loss;
}

template <typename T, int kVec, int kLanes, bool kCached>
__global__ void __launch_bounds__(kMaxRowThreads) kd_loss_kernel(KdLossParams p, float* total) {
  ARD_DYNAMIC_SHARED(float, shared);
  RowGroup<kLanes> group(p.classes, kVec);
  float loss = 0.0f;
  if (group.row() < p.batch) {
    loss = kd_loss_of_row<T, kVec, kCached>(p, group, group.staging(shared, kStagedFloats));
  }
  write_total(group, loss, total);
}

// item_size: bytes of one logit.
inline RowPlan plan_kd_loss(const DeviceLimits& device, const KdLossParams& p, int item_size,
                            bool total) {
  const int vec = 16 / item_size;
  const auto rows_aligned = [&](const void* data, int64_t stride) {
    return !data || (aligned16(data) && stride % vec == 0);
  };
  const bool vector =
      p.classes % vec == 0 && rows_aligned(p.student, p.student_stride) &&
      rows_aligned(p.teacher, p.teacher_stride) && rows_aligned(p.clean, p.clean_stride) &&
      rows_aligned(p.grad_student, p.classes) && rows_aligned(p.grad_clean, p.classes) &&
      rows_aligned(p.grad_teacher, p.classes);
  return plan_rows(device, p.batch, p.classes, vector ? vec : 1, kStagedFloats, total);
}

void launch_kd_loss(const KdLossParams& p, Dtype dtype, float* total, Stream stream) {
  bool summed = false;
  if (p.batch > 0) {
    for_dtype(dtype, [&](auto example) {
      using T = decltype(example);
      const DeviceLimits device = device_limits<kd_loss_kernel<T, 1, 32, true>>();
      const RowPlan plan = plan_kd_loss(device, p, sizeof(T), total != nullptr);
      summed = plan.sums;
      for_row_variant<T>(plan, [&](auto vec, auto lanes, auto cached) {
        start<kd_loss_kernel<T, vec.value, lanes.value, cached.value>>(geometry_of(plan), stream, p,
                                                                       summed ? total : nullptr);
      });
    });
  }
  if (total && !summed) launch_sum_rows(p.loss_rows, p.batch, total, stream);
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

void launch_sum_rows(const float* rows, int64_t count, float* total, Stream stream) {
  const int threads = count <= 32 ? 32 : count <= 256 ? 256 : 1024;
  start<sum_rows_kernel>({1, threads}, stream, rows, count, total);
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

void launch_scale_rows(void* grad, Dtype dtype, int64_t numel, int64_t classes, const float* scale,
                       bool per_row, float factor, Stream stream) {
  if (numel == 0) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    const ScaleRowsPlan plan =
        plan_scale_rows(grad, numel, classes, sizeof(T), per_row, kScaleThreads);
    for_bool(plan.vector, [&](auto vector) {
      constexpr int kVec = vector.value ? 16 / sizeof(T) : 1;
      start<scale_rows_kernel<T, kVec>>({plan.blocks, kScaleThreads}, stream, static_cast<T*>(grad),
                                        numel, classes, scale, per_row, factor);
    });
  });
}

}  // namespace ard::cuda
