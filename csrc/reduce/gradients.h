// Gradients as norms see them: memory, one after the other, whatever their shapes.
#pragma once

#include <cstdint>
#include <vector>

#include "base/device.h"
#include "reduce/norm.h"
#include "storage/registry.h"

namespace fused_optim {

/// One gradient, dense in memory. Complex ones are counted as their real views.
struct Gradient {
  void* data;
  int64_t numel;
  int64_t first_chunk;  // the number of its first chunk among those of all gradients
  Format dtype;
  Device device;

  int64_t num_chunks() const { return (numel + kNormChunk - 1) / kNormChunk; }
};

struct Gradients {
  std::vector<Gradient> entries;  // none of them empty
  int64_t num_chunks = 0;

  void add(void* data, int64_t numel, Format dtype, Device device) {
    if (numel == 0) return;
    entries.push_back({data, numel, num_chunks, dtype, device});
    num_chunks += entries.back().num_chunks();
  }
};

}  // namespace fused_optim
