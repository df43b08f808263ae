#include "cuda/fill_gradient_tables.h"

namespace fused_optim::cuda {

std::vector<GradientLaunch> fill_gradient_tables(const Gradients& gradients, Device device) {
  std::vector<GradientLaunch> launches;
  for (int dtype = 0; dtype < kNumFormats; ++dtype) {
    GradientLaunch* launch = nullptr;
    for (const Gradient& gradient : gradients.entries) {
      if (!(gradient.device == device) || gradient.dtype != static_cast<Format>(dtype)) continue;
      if (launch == nullptr || launch->head.num_entries == GradientTable::kItems) {
        launch = &launches.emplace_back();
        launch->dtype = gradient.dtype;
      }
      launch->head.num_chunks += static_cast<uint32_t>(gradient.num_chunks());
      ++launch->head.num_entries;
      launch->entries.push_back({gradient.data, gradient.numel,
                                 static_cast<uint32_t>(gradient.first_chunk),
                                 launch->head.num_chunks});
    }
  }
  return launches;
}

}  // namespace fused_optim::cuda
