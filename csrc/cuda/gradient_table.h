// A launch's gradients as the norm's and the scaling kernel read them: one argument, as
// KernelTable.
#pragma once

#include <cstdint>

#include "../norm/reduction.h"
#include "../platform.h"
#include "access.h"

namespace fused_optim::cuda {

struct GradientView {
  void* data;
  int64_t numel;
  uint32_t first_chunk;  // among the chunks of all gradients
  uint32_t chunk_end;    // in this launch: chunks up to its end
};

/// A chunk: these elements of a tensor, and its number among the chunks of all gradients.
struct GradientChunk {
  void* data;  // the tensor's
  int64_t begin, count;
  uint32_t number;

  template <class Storage>
  FUSED_OPTIM_INLINE Storage* elements() const {
    return static_cast<Storage*>(data) + begin;
  }
};

struct GradientTable {
  static constexpr int kEntries = 1360;

  double* sums;        // of each chunk, where sums are taken
  const double* norm;  // where gradients are scaled
  double max_norm;
  uint32_t num_entries;
  uint32_t num_chunks;
  GradientView entries[kEntries];

  FUSED_OPTIM_INLINE GradientChunk at(uint32_t chunk) const {
    const uint32_t index =
        find_by_chunk(num_entries, chunk, [&](uint32_t i) { return entries[i].chunk_end; });
    const GradientView& gradient = entries[index];
    const uint32_t in_tensor = chunk - (index == 0 ? 0 : entries[index - 1].chunk_end);
    const int64_t begin = in_tensor * kNormChunk, rest = gradient.numel - begin;
    return {gradient.data, begin, rest < kNormChunk ? rest : kNormChunk,
            gradient.first_chunk + in_tensor};
  }
};
static_assert(sizeof(GradientTable) <= 32764, "the limit of kernel arguments since CUDA 12.1");

}  // namespace fused_optim::cuda
