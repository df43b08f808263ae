// What torch's own operations do for a step, beside the kernels.
#pragma once

#include "gather/gather.h"

namespace fused_optim {

/// After the kernels: the averages that none of them updates, and gradients that they saw copies
/// of.
void after_kernels(const Gathered& gathered);

/// In place of the kernels, where the host knows that the step is skipped.
void after_skipping(const Gathered& gathered);

}  // namespace fused_optim
