// Where code runs in a launch, and what the threads of a block do for one another.
#pragma once

#include <cstdint>

#include "base/platform.h"

namespace fused_optim::cuda {

/// A thread's place in the launch.
struct Place {
  uint32_t block, thread, num_blocks, num_threads;
};

/// Whether this thread does what one thread does for its block. On the host, where threads run one
/// after the other, each one does it for itself.
FUSED_OPTIM_INLINE bool speaks_for_block([[maybe_unused]] const Place& place) {
#if defined(__CUDA_ARCH__)
  return place.thread == 0;
#else
  return true;
#endif
}

/// What threads of the block have written before is there for all of them after.
FUSED_OPTIM_INLINE void wait_for_block() {
#if defined(__CUDA_ARCH__)
  __syncthreads();
#endif
}

}  // namespace fused_optim::cuda
