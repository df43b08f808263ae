// From gradients to gradient tables: as many tensors in each as it has entries.
#pragma once

#include <vector>

#include "../norm/gradients.h"
#include "gradient_table.h"

namespace fused_optim::cuda {

struct GradientLaunch {
  DType dtype;
  GradientTable table;  // its numbers and addresses beside the entries are not set
};

/// The launches that see each gradient on this device once.
std::vector<GradientLaunch> pack(const Gradients& gradients, Device device);

}  // namespace fused_optim::cuda
