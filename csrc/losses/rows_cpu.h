// Rows of logits on the CPU, their KL and their cross-entropy: vector loops only; the mathematics
// is in rows.h.
//
// A block is one row, whose classes lie along the vectors, or kLanes rows side by side, a vector
// for each class: that is how rows of few classes are worked on, since a reduction over the lanes
// of one vector takes longer than all else. The same loops do both. What a row has one of (Lanes)
// stands in every lane that is the row's.
#pragma once

#include <algorithm>
#include <memory>

#include "common/half.h"
#include "common/simd.h"
#include "losses/rows.h"

namespace ard::cpu {

// Sums are kept in kLanes floats over at most this many elements, then in double: the rounding
// error of a row does not grow with the number of classes.
constexpr int64_t kSumBlock = 1024;

struct Lanes {
  float at[kLanes];
};

ARD_HD Lanes all_lanes(float value) {
  Lanes lanes;
  ARD_LANES for (int l = 0; l < kLanes; ++l) lanes.at[l] = value;
  return lanes;
}

ARD_HD Lanes operator*(const Lanes& lanes, float factor) {
  Lanes out;
  ARD_LANES for (int l = 0; l < kLanes; ++l) out.at[l] = lanes.at[l] * factor;
  return out;
}

template <bool kLargest>
ARD_HD float lane_extreme(const Lanes& lanes) {
  Lanes tops = lanes;
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) {
      tops.at[l] = kLargest ? max_or_second(tops.at[l + width], tops.at[l])
                            : min_or_second(tops.at[l + width], tops.at[l]);
    }
  }
  return tops.at[0];
}

struct Block {
  int64_t classes, row, count;  // rows [row, row + count)
  bool side_by_side;

  // Of its arrays of floats, and where in them a class of row + r is.
  int64_t size() const { return side_by_side ? classes * kLanes : classes; }
  int64_t index(int64_t r, int64_t c) const { return side_by_side ? c * kLanes + r : c; }
};

// Calls body(block) for all of rows [begin, end).
template <typename Body>
void each_block(int64_t classes, int64_t begin, int64_t end, const Body& body) {
  const bool side_by_side = classes * kLanes <= kSumBlock;
  const int64_t step = side_by_side ? kLanes : 1;
  for (int64_t row = begin; row < end; row += step) {
    body(Block{classes, row, std::min(step, end - row), side_by_side});
  }
}

// Calls body(c, seen) for the vectors at c of [begin, end), a part of an array of `size` floats.
// The last one of a long row may overlap the one before: its first `seen` lanes were in that.
template <typename Body>
ARD_HD void each_vector(int64_t begin, int64_t end, int64_t size, const Body& body) {
  int64_t c = begin;
  for (; c + kLanes <= end; c += kLanes) body(c, 0);
  if (c < size && end == size) body(size - kLanes, int(c - (size - kLanes)));
}

// Arrays of a block, one after another.
struct BlockScratch {
  BlockScratch(int64_t classes, int arrays)
      : size((std::max(classes, std::min(classes * kLanes, kSumBlock)) + kLanes - 1) / kLanes *
             kLanes),
        data(new float[arrays * size]) {}
  float* operator[](int index) const { return data.get() + index * size; }

  const int64_t size;
  const std::unique_ptr<float[]> data;
};

// Rows of logits [batch, classes] as floats: where they lie, or in `to`. Side by side with fewer
// rows than lanes, the last one fills the rest.
const float* load_rows(const Block& block, const void* logits, Dtype dtype, int64_t stride,
                       float* to);

// Where to compute rows of a gradient [batch, classes]: in place, or in `apart` for store_rows;
// null for no gradient.
inline float* place_rows(const Block& block, void* grad, Dtype dtype, float* apart) {
  const bool in_place = !block.side_by_side && dtype == Dtype::f32;
  return grad && in_place ? static_cast<float*>(grad) + block.row * block.classes
                          : (grad ? apart : nullptr);
}

// Stores what was computed at place_rows.
void store_rows(const Block& block, const float* from, void* grad, Dtype dtype);

// The values of the rows in `values` [batch], or `otherwise` where there are none.
Lanes row_values(const Block& block, const float* values, float otherwise);

// Cross-entropy.
struct CeRows {
  Lanes max, rest, inv_sum;
  CeRow of(int64_t r) const { return CeRow{max.at[r], rest.at[r], inv_sum.at[r]}; }
};

// Stores the weights e^(z - z_max), too.
CeRows ce_of_logits(const Block& block, const float* logits, float* weights);
CeRows ce_of_weights(const Block& block, const Lanes& max, const float* weights);

// grad = factor * (p - onehot).
void ce_gradient(const Block& block, const CeRows& rows, const float* weights,
                 const int64_t* labels, const Lanes& factor, float* grad);

struct KlRows {
  const float* student;
  const float* teacher;
  float inv_temperature;
  Lanes inv_teacher_temperature;
  Lanes grad_weight, teacher_grad_weight;
  float* weights;     // of the teacher's classes, 1 for its largest
  float* to_student;  // grad_weight * (p_student - p_teacher), or null
  float* to_teacher;  // teacher_grad_weight * kd_teacher_grad, or null
  Lanes teacher_max;
  Lanes kl;
};

// Finds the last two from the others. Needs kKlArrays arrays of `scratch`, from `first` on.
constexpr int kKlArrays = 7;
void kl_rows(const Block& block, KlRows& rows, const BlockScratch& scratch, int first);

// The powers of two that bring the largest entry of each row into [1, 2), 1 for a row whose KL is
// NaN; both gradients are multiplied by them.
Lanes scale_kl_gradients(const Block& block, const KlRows& rows);

}  // namespace ard::cpu
