// Which tensor of a launch a chunk belongs to.
#pragma once

#include <cstdint>

#include "base/platform.h"

namespace fused_optim::cuda {

/// The entry whose chunks contain this one. `chunk_end(i)`: chunks up to the end of entry i.
template <class ChunkEnd>
FUSED_OPTIM_INLINE uint32_t find_by_chunk(uint32_t num_entries, uint32_t chunk,
                                          ChunkEnd chunk_end) {
  uint32_t low = 0, high = num_entries - 1;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (chunk_end(middle) > chunk)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

}  // namespace fused_optim::cuda
