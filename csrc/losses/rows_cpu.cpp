#include "losses/fused.h"  // before all others

#include "losses/rows_cpu.h"

namespace ard::cpu {
namespace {

// kRows is 1 or kLanes, from here on. The extreme of each row from those of its lanes.
template <int kRows, bool kLargest>
ARD_HD void merge_extremes(Lanes& lanes) {
  if constexpr (kRows == 1) lanes = all_lanes(lane_extreme<kLargest>(lanes));
}

// The sums of each row: body(c, seen, sums) adds to the lanes of sums[k].
template <int kRows, int kSums, typename Body>
ARD_HD void sum_vectors(int64_t size, Lanes (&out)[kSums], const Body& body) {
  for (int k = 0; k < kSums; ++k) out[k] = all_lanes(0.0f);
  if constexpr (kRows != 1) {
    each_vector(0, size, size,
                [&](int64_t c, int seen) __attribute__((always_inline)) { body(c, seen, out); });
  } else {
    double totals[kSums] = {};
    for (int64_t block = 0; block < size; block += kSumBlock) {
      Lanes sums[kSums] = {};
      each_vector(block, std::min(block + kSumBlock, size), size,
                  [&](int64_t c, int seen) __attribute__((always_inline)) { body(c, seen, sums); });
      for (int k = 0; k < kSums; ++k) totals[k] += lane_sum(sums[k].at);
    }
    for (int k = 0; k < kSums; ++k) out[k] = all_lanes(float(totals[k]));
  }
}

template <int kRows>
ARD_HD Lanes row_tops(const float* logits, int64_t size) {
  Lanes tops = all_lanes(-INFINITY);
  each_vector(0, size, size, [&](int64_t c, int) __attribute__((always_inline)) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      tops.at[l] = max_or_second(logits[c + l], tops.at[l]);
    }
  });
  merge_extremes<kRows, true>(tops);
  return tops;
}

// ---- rows in and out

template <typename T>
ARD_HD void convert(const T* from, int64_t count, float* __restrict to) {
  for (int64_t c = 0; c < count; ++c) to[c] = to_float(from[c]);
}
ARD_CLONES void convert_row(const f16* from, int64_t n, float* to) { convert(from, n, to); }
ARD_CLONES void convert_row(const bf16* from, int64_t n, float* to) { convert(from, n, to); }

template <typename T>
ARD_HD void convert_back(const float* __restrict from, int64_t count, T* __restrict to) {
  for (int64_t c = 0; c < count; ++c) to[c] = from_float<T>(from[c]);
}
ARD_CLONES void convert_row(const float* from, int64_t n, f16* to) { convert_back(from, n, to); }
ARD_CLONES void convert_row(const float* from, int64_t n, bf16* to) { convert_back(from, n, to); }

// ---- cross-entropy

// weight(index, lane): e^(z - z_max).
template <int kRows, typename Weight>
ARD_HD CeRows ce_sums(const Lanes& max, int64_t size, const Weight& weight) {
  Lanes sums[2];
  sum_vectors<kRows>(size, sums,
                     [&](int64_t c, int seen, auto& sum) __attribute__((always_inline)) {
                       ARD_LANES for (int l = 0; l < kLanes; ++l) {
                         const float w = weight(c + l, l);
                         const float fresh = l < seen ? 0.0f : w;
                         sum[0].at[l] += ce_rest_of_weight(fresh);
                         sum[1].at[l] += ce_count_of_weight(fresh);
                       }
                     });
  CeRows rows;
  rows.max = max;
  ARD_LANES for (int l = 0; l < kLanes; ++l) {
    const CeRow row = ce_row(max.at[l], sums[0].at[l], sums[1].at[l]);
    rows.rest.at[l] = row.rest;
    rows.inv_sum.at[l] = row.inv_sum;
  }
  return rows;
}

template <int kRows>
ARD_HD CeRows ce_of_logits(int64_t size, const float* logits, float* __restrict weights) {
  const Lanes max = row_tops<kRows>(logits, size);
  return ce_sums<kRows>(max, size, [&](int64_t index, int l) __attribute__((always_inline)) {
    return weights[index] = exp_f32(logits[index] - max.at[l]);
  });
}

ARD_CLONES void ce_of_logits(const Block& block, const float* logits, float* weights, CeRows& out) {
  out = block.side_by_side ? ce_of_logits<kLanes>(block.size(), logits, weights)
                           : ce_of_logits<1>(block.size(), logits, weights);
}

ARD_CLONES void ce_of_weights(const Block& block, const Lanes& max, const float* weights,
                              CeRows& out) {
  const auto weight = [&](int64_t index, int)
                          __attribute__((always_inline)) { return weights[index]; };
  out = block.side_by_side ? ce_sums<kLanes>(max, block.size(), weight)
                           : ce_sums<1>(max, block.size(), weight);
}

ARD_CLONES void scale_weights(int64_t size, const float* weights, const Lanes& factor,
                              float* __restrict out) {
  each_vector(0, size, size, [&](int64_t c, int) __attribute__((always_inline)) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) out[c + l] = weights[c + l] * factor.at[l];
  });
}

// ---- KL

// The KL of the usual rows: logits that are finite and scaled gaps that are bounded. No class is
// tested: any other makes a sum NaN or an extreme too large. A gap is a plain difference of logits,
// rounded, less that of the teacher's largest class: enough unless the student is its teacher but
// for a shift of all logits.
template <int kRows>
ARD_HD void usual_kl(KlRows& b, int64_t size, float* __restrict gaps, bool* usual) {
  const float* __restrict student = b.student;
  const float* __restrict teacher = b.teacher;
  float* __restrict weights = b.weights;
  const float inv_t = b.inv_temperature;
  Lanes top = all_lanes(-INFINITY), shift = all_lanes(0.0f);
  each_vector(0, size, size, [&](int64_t c, int) __attribute__((always_inline)) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      const float difference = student[c + l] - teacher[c + l];
      shift.at[l] = lane_pick(teacher[c + l] > top.at[l], difference, shift.at[l]);
      top.at[l] = max_or_second(teacher[c + l], top.at[l]);
    }
  });
  if constexpr (kRows == 1) {
    const float largest = lane_extreme<true>(top);
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      shift.at[l] = top.at[l] == largest ? shift.at[l] : -INFINITY;
    }
    top = all_lanes(largest);
    merge_extremes<kRows, true>(shift);
  }
  b.teacher_max = top;
  Lanes sums[2], high = all_lanes(-INFINITY), low = all_lanes(INFINITY);
  sum_vectors<kRows>(size, sums,
                     [&](int64_t c, int seen, auto& sum) __attribute__((always_inline)) {
                       ARD_LANES for (int l = 0; l < kLanes; ++l) {
                         const float gap = (student[c + l] - teacher[c + l]) - shift.at[l];
                         const float w = exp_f32((teacher[c + l] - top.at[l]) * inv_t);
                         const float fresh = l < seen ? 0.0f : w;
                         sum[0].at[l] += fresh;
                         sum[1].at[l] += fresh * gap;
                         high.at[l] = max_or_second(gap, high.at[l]);
                         low.at[l] = min_or_second(gap, low.at[l]);
                         weights[c + l] = w;
                         gaps[c + l] = gap;
                       }
                     });
  merge_extremes<kRows, true>(high);
  merge_extremes<kRows, false>(low);
  Lanes inv_z, mean, above, below, teacher_factor;
  ARD_LANES for (int l = 0; l < kLanes; ++l) {
    inv_z.at[l] = 1.0f / sums[0].at[l];
    mean.at[l] = sums[1].at[l] * inv_z.at[l] * inv_t;
    above.at[l] = high.at[l] * inv_t - mean.at[l];
    below.at[l] = mean.at[l] - low.at[l] * inv_t;
    teacher_factor.at[l] = -inv_z.at[l] * b.teacher_grad_weight.at[l];
  }
  if (float* __restrict grad = b.to_teacher) {
    each_vector(0, size, size, [&](int64_t c, int) __attribute__((always_inline)) {
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        grad[c + l] = weights[c + l] * (gaps[c + l] * inv_t - mean.at[l]) * teacher_factor.at[l];
      }
    });
  }

  // e^x - 1 takes the gap's place.
  Lanes excess[1];
  const auto add_terms = [&](const auto& phi_of) __attribute__((always_inline)) {
    sum_vectors<kRows>(size, excess,
                       [&](int64_t c, int seen, auto& sum) __attribute__((always_inline)) {
                         if (kRows == 1) {
                           __builtin_prefetch(student + size + c);
                           __builtin_prefetch(teacher + size + c);
                         }
                         ARD_LANES for (int l = 0; l < kLanes; ++l) {
                           const float x = gaps[c + l] * inv_t - mean.at[l];
                           const float phi = phi_of(x);
                           const float w = weights[c + l];
                           sum[0].at[l] += l < seen ? 0.0f : w * phi;
                           gaps[c + l] = l < seen ? gaps[c + l] : x + phi;
                         }
                       });
  };
  if (kRows == 1 && above.at[0] < 1.0f && below.at[0] < 1.0f) {
    add_terms([](float x) __attribute__((always_inline)) { return kd_near_phi(x); });
  } else {
    add_terms([](float x) __attribute__((always_inline)) { return exp_beyond_line(x); });
  }
  Lanes factor, others;
  ARD_LANES for (int l = 0; l < kLanes; ++l) {
    excess[0].at[l] *= inv_z.at[l];
    const float inv_sum = 1.0f / (1.0f + excess[0].at[l]);
    factor.at[l] = b.grad_weight.at[l] * inv_z.at[l] * inv_sum;
    // What the two networks leave to the classes but the teacher's largest, whose gap is exact.
    const float student_ratio = min_or_second(exp_f32(-mean.at[l]) * inv_sum, 1.0f);
    others.at[l] = (1.0f + 0x1p-23f) - inv_z.at[l] * student_ratio;
  }
  for (int r = 0; r < kRows; ++r) {
    const float kl = log1p_f32(excess[0].at[r]);
    // Their gaps lost up to 2^-24 of the shift; that is at most 1e-6 of what decides this KL.
    const float lost = shift.at[r] * inv_t;
    usual[r] = above.at[r] < 64.0f && below.at[r] < 80.0f &&
               lost * lost * others.at[r] <= 64.0f * kl && b.inv_teacher_temperature.at[r] == inv_t;
    b.kl.at[r] = kl;
  }
  if (float* __restrict grad = b.to_student) {
    each_vector(0, size, size, [&](int64_t c, int) __attribute__((always_inline)) {
      if (kRows == 1) __builtin_prefetch(grad + size + c, 1);
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        grad[c + l] = weights[c + l] * (gaps[c + l] - excess[0].at[l]) * factor.at[l];
      }
    });
  }
}

ARD_CLONES void usual_kl(const Block& block, KlRows& rows, float* slopes, bool* usual) {
  block.side_by_side ? usual_kl<kLanes>(rows, block.size(), slopes, usual)
                     : usual_kl<1>(rows, block.size(), slopes, usual);
}

// One row by the careful path of rows.h, whatever its logits and temperatures: arrays [padded], the
// padding of both logits -inf, a class that neither network allows, which adds nothing to any sum.
struct CarefulRow {
  int64_t padded;
  const float* student;
  const float* teacher;
  float inv_temperature, inv_teacher_temperature, grad_weight, teacher_grad_weight;
  float* gap;
  float* weights;
  float* to_student;
  float* to_teacher;
};

ARD_CLONES float careful_kl(const CarefulRow& b) {
  const int64_t padded = b.padded;
  const float* __restrict student = b.student;
  const float* __restrict teacher = b.teacher;
  float* __restrict gap = b.gap;
  float* __restrict weights = b.weights;
  float* __restrict to_student = b.to_student;
  float* __restrict to_teacher = b.to_teacher;
  const float top = row_tops<1>(teacher, padded).at[0];
  int64_t at_top = 0;
  while (at_top < padded && teacher[at_top] != top) ++at_top;
  KdRow row = kd_row_begin(student[at_top < padded ? at_top : 0], top, b.inv_temperature,
                           b.inv_teacher_temperature);
  Lanes sums[2], high = all_lanes(-INFINITY), low = all_lanes(INFINITY);
  const bool tempered = row.tempered();
  sum_vectors<1>(padded, sums, [&](int64_t c, int, auto& sum) __attribute__((always_inline)) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      float extreme;
      const KdWeighed e = kd_weigh(row, tempered, student[c + l], teacher[c + l], extreme);
      sum[0].at[l] += e.weight;
      sum[1].at[l] += e.weight * e.gap;
      high.at[l] = max_or_second(extreme, high.at[l]);
      low.at[l] = min_or_second(extreme, low.at[l]);
      gap[c + l] = e.gap;
      weights[c + l] = e.weight;
    }
  });
  const KdSums found{sums[0].at[0], sums[1].at[0], lane_extreme<true>(high),
                     lane_extreme<false>(low)};
  if (!kd_row_set_sums(row, found)) kd_row_set_range(row, row_tops<1>(student, padded).at[0]);

  Lanes terms[1];
  const bool far = row.range == KdRange::far;
  if (far) {
    sum_vectors<1>(padded, terms, [&](int64_t c, int, auto& sum) __attribute__((always_inline)) {
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        sum[0].at[l] += kd_far_weight(row, student[c + l]);
      }
    });
  } else {
    sum_vectors<1>(padded, terms, [&](int64_t c, int, auto& sum) __attribute__((always_inline)) {
      ARD_LANES for (int l = 0; l < kLanes; ++l) {
        const float a = kd_scaled(row, student[c + l]);
        const KdTerm e = kd_middle_term(row, KdWeighed{a, gap[c + l], weights[c + l]});
        sum[0].at[l] += e.term;
        to_student[c + l] = e.diff;
      }
    });
  }
  const float kl = kd_row_finish(row, terms[0].at[0]);
  if (far) {
    for (int64_t c = 0; c < padded; ++c) {
      to_student[c] = kd_far_grad(row, student[c], weights[c]) * b.grad_weight;
    }
  } else {
    const float factor = b.grad_weight / (1.0f + row.excess);
    for (int64_t c = 0; c < padded; ++c) {
      to_student[c] = kd_close_grad(row, weights[c] * row.inv_z, to_student[c]) * factor;
    }
  }
  for (int64_t c = 0; c < padded; ++c) {
    to_teacher[c] = kd_teacher_grad(row, gap[c], weights[c]) * b.teacher_grad_weight;
  }
  return kl;
}

template <int kRows>
ARD_HD Lanes power_of_two_of_rows(int64_t size, const float* grad) {
  Lanes scales = all_lanes(0.0f);
  each_vector(0, size, size, [&](int64_t c, int) __attribute__((always_inline)) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      scales.at[l] = max_or_second(magnitude(grad[c + l]), scales.at[l]);
    }
  });
  merge_extremes<kRows, true>(scales);
  ARD_LANES for (int l = 0; l < kLanes; ++l) scales.at[l] = power_of_two_to_one(scales.at[l]);
  return scales;
}

ARD_CLONES void power_of_two_of_rows(const Block& block, const float* grad, Lanes& out) {
  out = block.side_by_side ? power_of_two_of_rows<kLanes>(block.size(), grad)
                           : power_of_two_of_rows<1>(block.size(), grad);
}

ARD_CLONES void scale_in_place(float* __restrict grad, int64_t size, const Lanes& scales) {
  int64_t c = 0;
  for (; c + kLanes <= size; c += kLanes) {
    ARD_LANES for (int l = 0; l < kLanes; ++l) grad[c + l] *= scales.at[l];
  }
  for (; c < size; ++c) grad[c] *= scales.at[0];  // of the only row
}

}  // namespace

const float* load_rows(const Block& block, const void* logits, Dtype dtype, int64_t stride,
                       float* to) {
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    const T* rows = static_cast<const T*>(logits) + block.row * stride;
    if (block.side_by_side) {
      for (int64_t l = 0; l < kLanes; ++l) {
        const T* row = rows + std::min(l, block.count - 1) * stride;
        for (int64_t c = 0; c < block.classes; ++c) to[c * kLanes + l] = to_float(row[c]);
      }
    } else if constexpr (std::is_same_v<T, float>) {
      to = const_cast<float*>(rows);
    } else {
      convert_row(rows, block.classes, to);
    }
  });
  return to;
}

void store_rows(const Block& block, const float* from, void* grad, Dtype dtype) {
  if (!grad) return;
  for_dtype(dtype, [&](auto example) {
    using T = decltype(example);
    T* const rows = static_cast<T*>(grad) + block.row * block.classes;
    if (block.side_by_side) {
      for (int64_t l = 0; l < block.count; ++l) {
        T* const row = rows + l * block.classes;
        for (int64_t c = 0; c < block.classes; ++c) row[c] = from_float<T>(from[c * kLanes + l]);
      }
    } else if constexpr (!std::is_same_v<T, float>) {
      convert_row(from, block.classes, rows);
    }
  });
}

Lanes row_values(const Block& block, const float* values, float otherwise) {
  if (!values) return all_lanes(otherwise);
  Lanes lanes;
  for (int64_t l = 0; l < kLanes; ++l) {
    lanes.at[l] = values[block.row + std::min(l, block.count - 1)];
  }
  return lanes;
}

CeRows ce_of_logits(const Block& block, const float* logits, float* weights) {
  CeRows rows;
  ce_of_logits(block, logits, weights, rows);
  return rows;
}

CeRows ce_of_weights(const Block& block, const Lanes& max, const float* weights) {
  CeRows rows;
  ce_of_weights(block, max, weights, rows);
  return rows;
}

void ce_gradient(const Block& block, const CeRows& rows, const float* weights,
                 const int64_t* labels, const Lanes& factor, float* grad) {
  Lanes scale;
  for (int l = 0; l < kLanes; ++l) scale.at[l] = rows.inv_sum.at[l] * factor.at[l];
  scale_weights(block.size(), weights, scale, grad);
  for (int64_t r = 0; r < block.count; ++r) {
    const int64_t at = block.index(r, labels[r]);
    grad[at] = ce_grad_of_weight(rows.of(r), weights[at], true) * factor.at[r];
  }
}

void kl_rows(const Block& block, KlRows& rows, const BlockScratch& scratch, int first) {
  bool usual[kLanes];
  usual_kl(block, rows, scratch[first], usual);
  const auto at = [&](int k) { return scratch[first + k]; };
  for (int64_t r = 0; r < block.count; ++r) {
    if (usual[r]) continue;
    const int64_t padded = (block.classes + kLanes - 1) / kLanes * kLanes;
    for (int64_t c = 0; c < padded; ++c) {
      at(1)[c] = c < block.classes ? rows.student[block.index(r, c)] : -INFINITY;
      at(2)[c] = c < block.classes ? rows.teacher[block.index(r, c)] : -INFINITY;
    }
    const CarefulRow row{padded,
                         at(1),
                         at(2),
                         rows.inv_temperature,
                         rows.inv_teacher_temperature.at[r],
                         rows.grad_weight.at[r],
                         rows.teacher_grad_weight.at[r],
                         at(3),
                         at(4),
                         at(5),
                         at(6)};
    rows.kl.at[r] = careful_kl(row);
    for (int64_t c = 0; c < block.classes; ++c) {
      const int64_t to = block.index(r, c);
      rows.weights[to] = row.weights[c];
      if (rows.to_student) rows.to_student[to] = row.to_student[c];
      if (rows.to_teacher) rows.to_teacher[to] = row.to_teacher[c];
    }
  }
  if (!block.side_by_side) rows.kl = all_lanes(rows.kl.at[0]);
}

Lanes scale_kl_gradients(const Block& block, const KlRows& rows) {
  Lanes scales;
  power_of_two_of_rows(block, rows.to_student, scales);
  for (int64_t l = 0; l < kLanes; ++l) {
    if (rows.kl.at[l] != rows.kl.at[l]) scales.at[l] = 1.0f;
  }
  scale_in_place(rows.to_student, block.size(), scales);
  if (rows.to_teacher) scale_in_place(rows.to_teacher, block.size(), scales);
  return scales;
}

}  // namespace ard::cpu
