#include "gradient_pack.h"

namespace fused_optim::cuda {

std::vector<GradientLaunch> pack(const Gradients& gradients, Device device) {
  std::vector<GradientLaunch> launches;
  for (int dtype = 0; dtype < kNumDTypes; ++dtype) {
    GradientTable* table = nullptr;
    for (const Gradient& gradient : gradients.entries) {
      if (!(gradient.device == device) || gradient.dtype != static_cast<DType>(dtype)) continue;
      if (table == nullptr || table->num_entries == GradientTable::kEntries)
        table = &launches.emplace_back(GradientLaunch{gradient.dtype, {}}).table;
      table->num_chunks += static_cast<uint32_t>(gradient.num_chunks());
      table->entries[table->num_entries++] = {gradient.data, gradient.numel,
                                              static_cast<uint32_t>(gradient.first_chunk),
                                              table->num_chunks};
    }
  }
  return launches;
}

}  // namespace fused_optim::cuda
