// What torch's own operations do for a step, beside the kernels.
#pragma once

#include "gather.h"

namespace fused_optim {

/// After the kernels: the averages that none of them updates, and gradients that they saw copies
/// of.
void finish(const Gathered& gathered);

/// In place of the kernels, where the host knows that the step is skipped.
void finish_skipped(const Gathered& gathered);

}  // namespace fused_optim
