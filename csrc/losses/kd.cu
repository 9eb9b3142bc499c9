// The distillation loss and its gradient in one pass over the logits. Each row is read from memory
// once and kept in shared memory for the passes that rows.h asks for; only rows too long for that
// are read again (from L2, as a rule).
#include "losses/kd.h"
#include "losses/kl_row.cuh"

namespace ard::cuda {

// Floats in shared memory, a class.
inline __host__ __device__ int staged_floats(const KdLossParams& p) {
  return p.grad_teacher ? 3 : 2;
}

// A student and where its gradients go.
template <typename T>
struct KdStudent {
  KlLogits<T> z;
  float* third;  // as z.first, where there is a gradient for the teacher
  float grad_weight;
  T* grad_student;  // or null
  T* grad_teacher;  // or null
  // For the power of two that both gradients are multiplied by, which brings the student's largest
  // into [1, 2). Null for none.
  float* scale;
};

// The sum of the teacher's weights, and nothing else.
struct KdWeightSum {
  static constexpr bool kStudentMax = false;
  float sum = 0.0f;

  __device__ __forceinline__ float weight() const { return sum; }
  __device__ __forceinline__ KdWeightSum plus(const KdWeightSum& other) const {
    return KdWeightSum{sum + other.sum};
  }
};

// largest: of the student's gradients that this thread has.
template <typename Group>
__device__ __forceinline__ float write_scale(float* scale, float largest, float kl, Group& group) {
  largest = group.reduce(largest, MaxOp());
  const float factor = kl == kl ? power_of_two_to_one(largest) : 1.0f;
  if (group.leads()) *scale = factor;
  return factor;
}

template <int kVec, typename T, typename Group>
__device__ __forceinline__ float quick_kd_row(const KdStudent<T>& k, KlRow& row, Group& group) {
  const KlLogits<T>& z = k.z;
  const float sum = for_kl_terms<kVec>(z, row, group, [&](int n, const KlTerm(&terms)[kVec]) {
    Floats<kVec> diff, weight, x;
#pragma unroll
    for (int j = 0; j < kVec; ++j) {
      diff[j] = terms[j].diff;
      weight[j] = terms[j].weight;
      x[j] = terms[j].x;
    }
    stage<kVec>(z.first, n, diff);
    stage<kVec>(z.second, n, weight);
    if (k.grad_teacher) stage<kVec>(k.third, n, x);
  });
  const float kl = kl_of_sum(row, sum, group);

  const float weight_factor = k.grad_weight * row.inv_z;
  const float factor = weight_factor * (1.0f / (1.0f + row.excess));
  const float teacher_factor = weight_factor * (z.inv_teacher_temperature / -z.inv_temperature);
  // Apart from the factors: their product may overflow where the gradients do not.
  float scale = 1.0f;
  if (k.scale) {
    float largest = 0.0f;
#pragma unroll 1
    ARD_FOR_SHARE(n) {
      const Floats<kVec> diff = staged<kVec>(z.first, n), weight = staged<kVec>(z.second, n);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        largest = fmaxf(fabsf(fmaf(-row.excess, weight[j], diff[j])), largest);
      }
    }
    scale = write_scale(k.scale, largest * fabsf(factor), kl, group);
  }
  if (k.grad_student) {
    T* const grad = k.grad_student + group.begin();
#pragma unroll 1
    ARD_FOR_SHARE(n) {
      Floats<kVec> out = staged<kVec>(z.first, n);
      const Floats<kVec> weight = staged<kVec>(z.second, n);
#pragma unroll
      for (int j = 0; j < kVec; ++j) out[j] = fmaf(-row.excess, weight[j], out[j]) * scale * factor;
      store_vec<kVec>(grad + n, from_floats<T>(out));
    }
  }
  if (k.grad_teacher) {
    T* const grad = k.grad_teacher + group.begin();
#pragma unroll 1
    ARD_FOR_SHARE(n) {
      Floats<kVec> out = staged<kVec>(k.third, n);
      const Floats<kVec> weight = staged<kVec>(z.second, n);
#pragma unroll
      for (int j = 0; j < kVec; ++j) out[j] = weight[j] * out[j] * scale * teacher_factor;
      store_vec<kVec>(grad + n, from_floats<T>(out));
    }
  }
  return kl;
}

template <typename T, typename Group, typename Add>
__device__ __forceinline__ float slow_kd_row(const KdStudent<T>& k, Group& group, const Add& add) {
  constexpr int kVec = 1;
  const KlLogits<T>& z = k.z;
  KdRow row;
  KdWeightSum sum;
  const float kl = slow_kl_row(z, group, row, sum, add);
  float close_factor = 1.0f / (1.0f + row.excess), scale = 1.0f;
  if (k.scale) {
    float largest = 0.0f;
#pragma unroll 1
    ARD_FOR_VECTORS(c) {
      const float grad =
          kd_student_grad(row, to_float(z.student[c]), to_float(z.teacher[c]), close_factor);
      largest = fmaxf(fabsf(grad * k.grad_weight), largest);
    }
    scale = write_scale(k.scale, largest, kl, group);
  }
  if (k.grad_teacher) {
    const float weight = k.grad_weight * (z.inv_teacher_temperature / z.inv_temperature);
#pragma unroll 1
    ARD_FOR_VECTORS(c) {
      float gap;
      const KdWeighed e = kd_weigh(row, to_float(z.student[c]), to_float(z.teacher[c]), gap);
      k.grad_teacher[c] = from_float<T>(kd_teacher_grad(row, e.gap, e.weight) * weight * scale);
    }
  }
  if (k.grad_student) {
    if (k.scale) kd_scale_gradient(row, close_factor, scale);
#pragma unroll 1
    ARD_FOR_VECTORS(c) {
      const float grad =
          kd_student_grad(row, to_float(z.student[c]), to_float(z.teacher[c]), close_factor);
      k.grad_student[c] = from_float<T>(grad * k.grad_weight);
    }
  }
  return kl;
}

template <int kVec, bool kCached, typename T, typename Group>
__device__ __forceinline__ float kd_row_loss(const KdStudent<T>& k, Group& group) {
  const auto add = [](KdWeightSum& sum, float, int, float, float weight) { sum.sum += weight; };
  if constexpr (kCached) {
    KlRow row;
    KdWeightSum sum;
    if (kl_row<kVec>(k.z, group, row, sum, add)) return quick_kd_row<kVec>(k, row, group);
  }
  return slow_kd_row(k, group, add);
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
  const T* const clean =
      p.clean ? static_cast<const T*>(p.clean) + index * p.clean_stride : nullptr;
  const int students = clean && !p.labels ? 2 : 1;

  KdStudent<T> k;
  k.z.student = static_cast<const T*>(p.student) + index * p.student_stride;
  k.z.teacher = static_cast<const T*>(p.teacher) + index * p.teacher_stride;
  k.z.inv_temperature = p.inv_temperature;
  k.z.inv_teacher_temperature =
      kd_inv_temperature(p.teacher_temperature, index, p.inv_teacher_temperature);
  k.z.first = staging;
  k.z.second = staging + group.room();
  k.third = staging + 2 * group.room();
  k.grad_weight = weight * p.kl_grad_weight;
  k.grad_student = grad_row<T>(p.grad_student, index, p.classes);
  k.grad_teacher = grad_row<T>(p.grad_teacher, index, p.classes);
  k.scale = p.grad_scale ? p.grad_scale + index : nullptr;
  float first = 0.0f, second = 0.0f;
#pragma unroll 1
  for (int n = 0; n < students; ++n) {  // the second reads the teacher again, from L2 as a rule
    const float kl = kd_row_loss<kVec, kCached>(k, group);
    (n == 0 ? first : second) = kl;
    k.z.student = clean;
    k.z.inv_teacher_temperature =
        kd_inv_temperature(p.clean_teacher_temperature, index, p.inv_clean_teacher_temperature);
    k.grad_weight = weight * p.clean_grad_weight;
    k.grad_student = grad_row<T>(p.grad_clean, index, p.classes);
  }
  if (clean && p.labels) {
    second = ce_row_loss<T, kVec, kCached>(
        clean, p.classes, p.labels[index], staging, weight * p.clean_grad_weight,
        grad_row<T>(p.grad_clean, index, p.classes), nullptr, nullptr, group);
  }
  const float loss = weighted_loss(weight, p.kl_weight, first, p.clean_weight, second);
  if (group.leads()) p.loss_rows[index] = loss;
  return loss;
}

template <typename T, int kVec, int kLanes, bool kCached>
__global__ void __launch_bounds__(kMaxRowThreads, 1) kd_loss_kernel(KdLossParams p, float* total) {
  ARD_DYNAMIC_SHARED(float, shared);
  RowGroup<kLanes> group(p.classes, kVec);
  float loss = 0.0f;
  if (group.row() < p.batch) {
    loss = kd_loss_of_row<T, kVec, kCached>(p, group, group.staging(shared, staged_floats(p)));
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
  return plan_rows(device, p.batch, p.classes, vector ? vec : 1, staged_floats(p), total);
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
