// The threads that the engine runs on here.
#pragma once

#include <cstdint>

namespace fused_optim::tsan {

/// What at::get_num_threads answers from now on.
void set_num_threads(int count);

/// Parallel regions entered so far.
int64_t count_regions();

}  // namespace fused_optim::tsan
