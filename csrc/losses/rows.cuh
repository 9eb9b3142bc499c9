// Kernels over rows of logits: 8 lanes a row up to 16 classes, a warp a row up to 1,024, a block
// or, where the device has them, a cluster of blocks a row beyond. How they are launched, how the
// threads of a row share it, and its KL and cross-entropy by these threads.
#pragma once

#include "common/clusters.cuh"
#include "common/half.h"
#include "common/reductions.cuh"
#include "common/vectors.cuh"
#include "losses/rows.h"

namespace ard::cuda {

constexpr int64_t kFewLanesClasses = 16;  // the most for 8 lanes a row
constexpr int64_t kWarpRowClasses = 1024;
constexpr int kWarpsPerBlock = 4;          // with several rows a block
constexpr int kMaxRowThreads = 512;        // of a block
constexpr int64_t kSummedElements = 2048;  // most logits a block where one launch sums the batch
constexpr int kMaxRowWords = 8;            // of a value that the threads of a row reduce

// Floats of an array of so many, with the next one aligned.
ARD_HD int padded4(int floats) { return (floats + 3) / 4 * 4; }

// What the warps of a block and the blocks of a cluster tell one another, twice: with two buffers
// used in turn, the barrier of one reduction also tells that everyone has read the buffer before
// it, so that one barrier a reduction is enough.
struct RowScratch {
  uint32_t of_warps[2][kMaxRowWords][kMaxRowThreads / 32];
  uint32_t of_blocks[2][kMaxRowWords][kMaxClusterBlocks];
};

// The threads that own one row. Each visits the vectors [begin, end) from its rank on, always the
// same ones, so that what it staged it may read back without a barrier; what another thread of this
// block staged may be read after sync. All threads of a row call the same reductions in the same
// order; all get the result.
//
// kLanes lanes of a warp.
template <int kLanes>
class LaneGroup {
 public:
  __device__ __forceinline__ LaneGroup(int64_t classes, int /*vec*/) : classes_(int(classes)) {}

  __device__ __forceinline__ int64_t row() const {
    return int64_t(blockIdx.x) * (blockDim.x / kLanes) + threadIdx.x / kLanes;
  }
  __device__ __forceinline__ int rank() const { return int(threadIdx.x % kLanes); }
  __device__ __forceinline__ int size() const { return kLanes; }
  // One thread of all, for what is written once a row.
  __device__ __forceinline__ bool leads() const { return rank() == 0; }
  __device__ __forceinline__ int begin() const { return 0; }
  __device__ __forceinline__ int end() const { return classes_; }
  // Floats that an array of a float a class takes in shared memory.
  __device__ __forceinline__ int room() const { return padded4(classes_); }
  // The row's own arrays in the block's shared memory.
  __device__ __forceinline__ float* staging(float* shared, int floats_per_class) const {
    return shared + int(threadIdx.x / kLanes) * floats_per_class * room();
  }

  __device__ __forceinline__ void sync() const { __syncwarp(lanes()); }

  // V is whatever op combines, see warp_reduce.
  template <typename V, typename Op>
  __device__ __forceinline__ V reduce(const V& value, Op op) const {
    return warp_reduce<kLanes>(value, op, lanes());
  }

 private:
  // Those of this row: another row of the warp may take another path.
  __device__ __forceinline__ static unsigned lanes() {
    return kLanes == 32 ? kAllLanes : ((1u << kLanes) - 1) << (threadIdx.x % 32 / kLanes * kLanes);
  }

  int classes_;
};

// A block, or the blocks of a cluster, each with a contiguous share of the row. At least one
// reduction: it ends the cluster barrier that the constructor began. After the last one no block
// writes to another, so that each may exit.
class BlockGroup {
 public:
  __device__ __forceinline__ BlockGroup(int64_t classes, int vec)
      : blocks_(cluster_blocks()), rank_(cluster_rank()) {
    __shared__ RowScratch scratch;
    scratch_ = &scratch;
    // Says that this block is there; the first reduction waits for the others.
    if (blocks_ > 1) cluster_arrive();
    const int64_t vectors = (classes + vec - 1) / vec;
    share_ = int(share_size(vectors, int64_t(blocks_))) * vec;
    begin_ = int(min(rank_ * int64_t(share_), classes));
    end_ = int(min(begin_ + int64_t(share_), classes));
  }

  __device__ __forceinline__ int64_t row() const { return int64_t(blockIdx.x / blocks_); }
  __device__ __forceinline__ int rank() const { return int(threadIdx.x); }
  __device__ __forceinline__ int size() const { return int(blockDim.x); }
  __device__ __forceinline__ bool leads() const { return rank_ == 0 && threadIdx.x == 0; }
  __device__ __forceinline__ int begin() const { return begin_; }
  __device__ __forceinline__ int end() const { return end_; }
  __device__ __forceinline__ int room() const { return padded4(share_); }
  __device__ __forceinline__ float* staging(float* shared, int /*floats_per_class*/) const {
    return shared;
  }

  __device__ __forceinline__ void sync() const { __syncthreads(); }

  template <typename V, typename Op>
  __device__ __forceinline__ V reduce(const V& value, Op op) {
    const unsigned warps = blockDim.x / 32, lane = threadIdx.x % 32;  // warps: a power of two
    const Words<V> of_warp(warp_reduce(value, op));
    auto& of_warps = scratch_->of_warps[turn_];
    auto& of_blocks = scratch_->of_blocks[turn_];
    turn_ ^= 1;
    if (lane == 0) {
#pragma unroll
      for (int n = 0; n < Words<V>::kCount; ++n) of_warps[n][threadIdx.x / 32] = of_warp.at[n];
    }
    __syncthreads();
    const V of_block = together(of_warps, value, op, warps);
    if (blocks_ == 1) return of_block;
    if (!all_started_) cluster_wait();
    all_started_ = true;
    if (threadIdx.x < blocks_) {
      const Words<V> words(of_block);
#pragma unroll
      for (int n = 0; n < Words<V>::kCount; ++n) {
        store_to_block(&of_blocks[n][rank_], threadIdx.x, words.at[n]);
      }
    }
    cluster_arrive();
    cluster_wait();
    return together(of_blocks, value, op, blocks_);
  }

 private:
  // Of `count` values, a power of two, each thread's from the slots. The example tells the type.
  template <typename V, typename Op, int kSlots>
  __device__ __forceinline__ static V together(const uint32_t (&slots)[kMaxRowWords][kSlots],
                                               const V& /*example*/, Op op, unsigned count) {
    static_assert(Words<V>::kCount <= kMaxRowWords, "RowScratch has no room for such a value");
    Words<V> words;
#pragma unroll
    for (int n = 0; n < Words<V>::kCount; ++n) {
      words.at[n] = slots[n][threadIdx.x % 32 & (count - 1)];
    }
    V value = words.value();
    for (unsigned bits = count / 2; bits > 0; bits /= 2) {
      value = op(value, lane_xor(value, int(bits), kAllLanes));
    }
    return value;
  }

  RowScratch* scratch_;
  unsigned blocks_, rank_;
  int share_, begin_, end_;
  int turn_ = 0;
  bool all_started_ = false;  // the blocks of the cluster
};

// kLanes: lanes of a warp that own a row, 0 for a block or a cluster.
template <int kLanes>
using RowGroup = std::conditional_t<kLanes == 0, BlockGroup, LaneGroup<kLanes>>;

// `group` and `kVec` are those of the caller.
#define ARD_FOR_VECTORS(c) \
  for (int c = group.begin() + group.rank() * kVec; c < group.end(); c += group.size() * kVec)

// Of a kernel over rows of logits.
struct RowPlan {
  int lanes;    // as RowGroup
  bool vector;  // 16-byte loads
  bool cached;  // the row stays in shared memory between its passes
  bool sums;    // the launch is one cluster, and may write the sum of all losses: see write_total
  int cluster;  // blocks
  int threads;  // of a block
  int64_t blocks;
  int64_t shared_bytes;
};

inline Geometry geometry_of(const RowPlan& plan) {
  return {plan.blocks, plan.threads, plan.shared_bytes, plan.cluster};
}

// vec: elements of 16 bytes, where all tensors are aligned for them, else 1. floats_per_class: what
// a row keeps in shared memory. total: the sum of all losses is wanted too.
inline RowPlan plan_rows(const DeviceLimits& device, int64_t batch, int64_t classes, int vec,
                         int floats_per_class, bool total) {
  const int64_t scratch = int64_t(sizeof(RowScratch));
  const int64_t max_shared = device.max_shared - scratch;
  const auto bytes = [&](int64_t elements) { return floats_per_class * padded16(4 * elements); };
  RowPlan plan{};
  plan.cached = true;
  plan.cluster = 1;
  plan.lanes = classes <= kFewLanesClasses ? 8 : 32;
  const int64_t rows_a_warp = 32 / plan.lanes, warps = ceil_div(batch, rows_a_warp);
  const auto warp_bytes = [&](int64_t count) { return count * rows_a_warp * bytes(classes); };
  if (classes <= kWarpRowClasses && warp_bytes(kWarpsPerBlock) <= max_shared) {
    plan.vector = vec > 1 && plan.lanes == 32;
    int64_t of_block = kWarpsPerBlock;
    if (total) {
      int blocks = device.clusters ? kMaxClusterBlocks : 1;
      const auto few = [&](int of) { return batch * classes <= kSummedElements * of; };
      while (blocks > 1 && blocks / 2 * kWarpsPerBlock >= warps && few(blocks / 2)) blocks /= 2;
      const int64_t needed = ceil_div(warps, blocks);
      plan.sums = few(blocks) && 32 * needed <= kMaxRowThreads && warp_bytes(needed) <= max_shared;
      if (plan.sums) {
        plan.cluster = blocks;
        of_block = needed;
      }
    }
    plan.blocks = plan.sums ? plan.cluster : ceil_div(warps, of_block);
    plan.threads = int(32 * of_block);
    plan.shared_bytes = warp_bytes(of_block);
    return plan;
  }
  plan.lanes = 0;
  plan.vector = vec > 1;
  const auto share = [&] { return share_size(ceil_div(classes, vec), plan.cluster) * vec; };
  // A multiprocessor keeps 1 KiB for each of its blocks and has 1 KiB more than one may ask for.
  const auto two_fit = [&] {
    return 2 * (bytes(share()) + scratch + 1024) <= device.max_shared + 1024;
  };
  while (device.clusters && plan.cluster < kMaxClusterBlocks && !two_fit()) plan.cluster *= 2;
  plan.cached = floats_per_class == 0 || bytes(share()) <= max_shared;
  if (!plan.cached) plan.cluster = 1;
  plan.threads = share() <= 8192 ? 256 : kMaxRowThreads;
  plan.blocks = batch * plan.cluster;
  plan.shared_bytes = plan.cached ? bytes(share()) : 0;
  return plan;
}

template <int kValue>
using Int = std::integral_constant<int, kValue>;

// Calls body(vec, lanes, cached) with the plan's as types. Only these variants exist: what is not
// cached is slow anyway and does without vectors.
template <typename T, typename Body>
void for_row_variant(const RowPlan& plan, Body body) {
  if (plan.lanes == 8) return body(Int<1>{}, Int<8>{}, std::true_type{});
  if (!plan.cached) return body(Int<1>{}, Int<0>{}, std::false_type{});
  for_bools(plan.vector, plan.lanes == 32, [&](auto vector, auto warp) {
    body(Int<vector.value ? 16 / int(sizeof(T)) : 1>{}, Int<warp.value ? 32 : 0>{},
         std::true_type{});
  });
}

// Of all rows' losses; in kd.cu.
void launch_sum_rows(const float* rows, int64_t count, float* total, Stream stream);

// The sum of all rows' losses by the launch that computes them (RowPlan::sums), in double and in a
// fixed order: the last line of a kernel, which all threads reach. loss: of the thread's row, 0
// where there is none. total: null to write nothing.
template <int kLanes>
__device__ __forceinline__ void write_total(const LaneGroup<kLanes>& group, float loss,
                                            float* total) {
  if (!total) return;
  __shared__ double of_warps[kMaxRowThreads / 32];
  __shared__ double of_blocks[kMaxClusterBlocks];
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, blocks = cluster_blocks();
  if (blocks > 1) cluster_arrive();
  double sum = warp_reduce(group.leads() ? double(loss) : 0.0, SumOp());
  if (lane == 0) of_warps[warp] = sum;
  __syncthreads();
  if (warp == 0) sum = warp_reduce(lane < blockDim.x / 32 ? of_warps[lane] : 0.0, SumOp());
  if (blocks > 1) {
    cluster_wait();  // all blocks have started
    if (threadIdx.x == 0) store_to_block(&of_blocks[cluster_rank()], 0, sum);
    cluster_arrive();
    cluster_wait();
    if (cluster_rank() != 0) return;
    if (warp == 0) sum = warp_reduce(lane < blocks ? of_blocks[lane] : 0.0, SumOp());
  }
  if (threadIdx.x == 0) *total = float(sum);
}

// With a block or more a row, launch_sum_rows does it.
__device__ __forceinline__ void write_total(const BlockGroup&, float, float*) {}

// Without those that are NaN.
template <int kVec>
__device__ __forceinline__ float largest_of(const Floats<kVec>& values) {
  float largest = values[0];
#pragma unroll
  for (int j = 1; j < kVec; ++j) largest = fmaxf(largest, values[j]);
  return largest;
}

// Where in an array of shared memory the thread that visits it keeps element `at` of its share.
// With vectors of 8 their halves change places for every second four threads, so that 8 threads use
// all banks at once.
template <int kVec>
__device__ __forceinline__ int place(int at) {
  return kVec == 8 ? at ^ int(threadIdx.x & 4) : at;
}

template <int kVec>
__device__ __forceinline__ void stage(float* array, int at, const Floats<kVec>& values) {
  constexpr int kWide = kVec == 1 ? 1 : 4;
#pragma unroll
  for (int q = 0; q < kVec; q += kWide) {
    Vec<float, kWide> part;
#pragma unroll
    for (int j = 0; j < kWide; ++j) part.v[j] = values[q + j];
    store_vec<kWide>(array + place<kVec>(at + q), part);
  }
}

template <int kVec>
__device__ __forceinline__ Floats<kVec> staged(const float* array, int at) {
  constexpr int kWide = kVec == 1 ? 1 : 4;
  Floats<kVec> values;
#pragma unroll
  for (int q = 0; q < kVec; q += kWide) {
    const auto part = load_vec<kWide>(array + place<kVec>(at + q));
#pragma unroll
    for (int j = 0; j < kWide; ++j) values[q + j] = part.v[j];
  }
  return values;
}

// Whether this thread visits the class, and so may use what is staged of it.
template <int kVec, typename Group>
__device__ __forceinline__ bool visits(const Group& group, int c) {
  const int at = c - group.begin();  // size is a power of two
  return c >= group.begin() && c < group.end() && (at / kVec & (group.size() - 1)) == group.rank();
}

// e^x of x <= 0, relative error up to 5e-8 |x|: 0 from about -87.3 down, NaN for NaN.
__device__ __forceinline__ float exp_below(float x) {
  float e;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(x * 1.44269504f));
  return e;
}

// Returns the loss; writes grad_weight * (p - onehot) unless grad is null, and unless correct is
// null whether the label is the largest logit, the first of its size, of a row without NaN. Unless
// scale is null the gradient comes times a power of two, written there: its largest entry, that of
// the label, is then in [1, 2).
//
// array: a float a class in shared memory, where the row is cached; else kVec is 1 and each pass
// reads the logits again. It has the logits, then e^(z - max). The first class that attains the
// maximum is left out of their sum, so that a certain label loses no digits.
//
// A label outside [0, C) cannot be reported from here: the row's loss and gradient become NaN.
template <typename T, int kVec, bool kCached, typename Group>
__device__ float ce_row_loss(const T* logits, int64_t classes, int64_t label, float* array,
                             float grad_weight, T* grad, float* scale, bool* correct,
                             Group& group) {
  static_assert(kCached || kVec == 1);
  const bool valid = label >= 0 && label < classes;
  const float label_logit = to_float(logits[valid ? label : 0]);
  const auto loaded = [&](int c) { return to_floats(load_vec<kVec>(logits + c)); };
  const auto kept = [&](int c) { return staged<kVec>(array, c - group.begin()); };
  // Changes one class of the array.
  const auto keep = [&](int c, float value) {
    if (kCached && visits<kVec>(group, c)) array[place<kVec>(c - group.begin())] = value;
  };

  float largest = -INFINITY;
  int at = group.begin() + group.rank() * kVec;  // the first vector that has it
#pragma unroll 2
  ARD_FOR_VECTORS(c) {
    const Floats<kVec> z = loaded(c);
    if constexpr (kCached) stage<kVec>(array, c - group.begin(), z);
    const float most = largest_of(z);
    if (most > largest) {
      largest = most;
      at = c;
    }
  }
  Largest top{largest, at};
  if (kVec > 1 && at < group.end()) {
    const Floats<kVec> z = kCached ? kept(at) : loaded(at);
#pragma unroll
    for (int j = kVec - 1; j >= 0; --j) {
      if (z[j] == largest) top.index = at + j;
    }
  }
  top = group.reduce(top, LargerOp());
  const float max = top.value;

  // The sum of all e^(z - max) but one of 1.
  const auto weighed = [&](auto exact) {
    float sum = 0.0f;
#pragma unroll exact.value ? 1 : 2
    ARD_FOR_VECTORS(c) {
      Floats<kVec> e = exact.value ? loaded(c) : kept(c);
#pragma unroll
      for (int j = 0; j < kVec; ++j) {
        if constexpr (exact.value) {
          e[j] = c + j == top.index ? 0.0f : exp_f32(e[j] - max);
        } else {
          e[j] = exp_below(e[j] - max);
        }
        sum += e[j];
      }
      if constexpr (kCached) stage<kVec>(array, c - group.begin(), e);
    }
    return group.reduce(sum, SumOp());
  };
  float rest;
  if constexpr (kCached) {
    keep(top.index, -INFINITY);
    rest = weighed(std::false_type{});
    // All that is left is far below the maximum, and scaled it would show how exp_below rounds.
    if (rest < 1e-6f) rest = weighed(std::true_type{});
    keep(top.index, 1.0f);
  } else {
    rest = weighed(std::true_type{});
  }
  // max - max: NaN where it is infinite, as in torch.
  const CeRow row = ce_row(max, valid ? rest + (max - max) : NAN, 1.0f);

  // p - 1 would cancel for a certain label.
  const float at_label = label_logit == max ? -row.rest * row.inv_sum
                                            : exp_below(label_logit - max) * row.inv_sum - 1.0f;
  if (scale) {
    const float factor = power_of_two_to_one(magnitude(at_label));
    grad_weight *= factor;
    if (group.leads()) *scale = factor;
  }
  if (grad) {
    const float weight = row.inv_sum * grad_weight;
#pragma unroll 2
    ARD_FOR_VECTORS(c) {
      Floats<kVec> e = kCached ? kept(c) : loaded(c);
      if constexpr (!kCached) e[0] = c == top.index ? 1.0f : exp_f32(e[0] - max);
#pragma unroll
      for (int j = 0; j < kVec; ++j) e[j] *= weight;
      store_vec<kVec>(grad + c, from_floats<T>(e));
    }
    // By the thread that has just written the rest of its vector.
    if (valid && visits<kVec>(group, int(label))) {
      grad[label] = from_float<T>(at_label * grad_weight);
    }
  }
  if (correct) {
    bool nan = row.rest != row.rest;
    if (nan && !is_finite(max)) {
      float found = 0.0f;
#pragma unroll 1
      ARD_FOR_VECTORS(c) {
        const Floats<kVec> z = loaded(c);
#pragma unroll
        for (int j = 0; j < kVec; ++j) found = z[j] != z[j] ? 1.0f : found;
      }
      nan = group.reduce(found, MaxOp()) != 0.0f;
    }
    if (group.leads()) *correct = valid && !nan && top.index == label;
  }
  return ce_loss(row, label_logit);
}

}  // namespace ard::cuda
