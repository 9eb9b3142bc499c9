// The four largest logits of a row, with their classes.
#pragma once

#include "core/attack_gradient_math.h"
#include "cpu/row_view.h"

namespace ard::cpu {

struct RankedRow {
  Top4 top;
  bool has_nan;
};

// How many of a vector's logits rank before each of them: their places, all at once and without a
// branch. A NaN ranks before none, and none before it.
ARD_HD void vector_ranks(const float* v, int* ranks) {
  ARD_LANES for (int l = 0; l < kLanes; ++l) {
    const float mine = v[l];
    int before = 0;
    for (int j = 0; j < kLanes; ++j) {
      const int tie = j < l ? 1 : 0;
      before += v[j] > mine ? 1 : (v[j] == mine ? tie : 0);
    }
    ranks[l] = before;
  }
}

ARD_HD bool any_lane(const int* lanes) {
  int any = 0;
  for (int l = 0; l < kLanes; ++l) any |= lanes[l];
  return any != 0;
}

// Up to kLanes classes.
ARD_HD RankedRow rank_short_row(const float* v, int64_t classes) {
  int ranks[kLanes], nan[kLanes];
  vector_ranks(v, ranks);
  ARD_LANES for (int l = 0; l < kLanes; ++l) nan[l] = v[l] == v[l] ? 0 : 1;
  RankedRow row{top4_empty(), any_lane(nan)};
  // With a NaN in the row places may be taken twice; its ranking is not used then.
  int at_place[kLanes] = {};
  for (int l = 0; l < int(classes); ++l) at_place[ranks[l]] = l;
  const int count = classes < 4 ? int(classes) : 4;
  for (int k = 0; k < count; ++k) row.top.at[k] = Ranked{v[at_place[k]], at_place[k]};
  return row;
}

// The fourth largest of the lanes' maxima is at most the fourth largest logit, so only the few
// logits from there on need be put in order.
ARD_HD RankedRow rank_long_row(const RowView& logits, int64_t classes) {
  float tops[kLanes];
  int nan[kLanes], ranks[kLanes];
  ARD_LANES for (int l = 0; l < kLanes; ++l) {
    tops[l] = -INFINITY;
    nan[l] = 0;
  }
  for (int64_t c = 0; c < logits.padded; c += kLanes) {
    const float* v = logits.vector_at(c);
    ARD_LANES for (int l = 0; l < kLanes; ++l) {
      tops[l] = max_or_second(v[l], tops[l]);
      nan[l] = v[l] == v[l] ? nan[l] : 1;
    }
  }
  vector_ranks(tops, ranks);
  float threshold = -INFINITY;
  for (int l = 0; l < kLanes; ++l) threshold = ranks[l] == 3 ? tops[l] : threshold;

  RankedRow row{top4_empty(), any_lane(nan)};
  for (int64_t c = 0; c < logits.padded; c += kLanes) {
    const float* v = logits.vector_at(c);
    int found = 0;
    ARD_LANES for (int l = 0; l < kLanes; ++l) found |= v[l] >= threshold;
    if (!found) continue;
    for (int l = 0; l < kLanes && c + l < classes; ++l) {
      if (v[l] >= threshold) top4_insert(row.top, Ranked{v[l], int(c) + l});
    }
  }
  return row;
}

ARD_HD RankedRow rank_row(const RowView& logits, int64_t classes) {
  return logits.padded == kLanes ? rank_short_row(logits.vector_at(0), classes)
                                 : rank_long_row(logits, classes);
}

}  // namespace ard::cpu
