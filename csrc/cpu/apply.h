// The CPU engine: one flat parallel loop over all elements of a bucket.
#pragma once

#include "step/table.h"

namespace fused_optim::cpu {

void apply(const Bucket& bucket);

}  // namespace fused_optim::cpu
