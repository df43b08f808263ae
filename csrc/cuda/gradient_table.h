// A launch's gradients as the norm's and the scaling kernel read them: one argument, as
// KernelTable.
#pragma once

#include <cstdint>

#include "../norm/reduction.h"
#include "../platform.h"

namespace fused_optim::cuda {

struct GradientView {
  void* data;
  int64_t numel;
  uint32_t first_chunk;  // among the chunks of all gradients
  uint32_t chunk_end;    // in this launch: chunks up to its end
};

struct GradientTable {
  static constexpr int kEntries = 1360;

  double* sums;        // of each chunk, where sums are taken
  const double* norm;  // where gradients are scaled
  double max_norm;
  uint32_t num_entries;
  uint32_t num_chunks;
  GradientView entries[kEntries];

  /// The entry whose chunks contain this one.
  FUSED_OPTIM_INLINE uint32_t find(uint32_t chunk) const {
    uint32_t low = 0, high = num_entries - 1;
    while (low < high) {
      const uint32_t middle = (low + high) / 2;
      if (entries[middle].chunk_end > chunk)
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }

  FUSED_OPTIM_INLINE uint32_t first_chunk_of(uint32_t index) const {
    return index == 0 ? 0 : entries[index - 1].chunk_end;
  }
};
static_assert(sizeof(GradientTable) <= 32764, "the limit of kernel arguments since CUDA 12.1");

}  // namespace fused_optim::cuda
