// The loop of the folding, over a part of the channels; called from several threads at once.
#pragma once

#include "core/fold_params.h"

namespace ard::cpu {

// Work of all layers together: an element a weight, one more a channel.
int64_t fold_work(const FoldParams& p);

// The channels whose first element of work is in [begin, end).
void fold_batch_norm(const FoldParams& p, Dtype dtype, int64_t begin, int64_t end);

}  // namespace ard::cpu
