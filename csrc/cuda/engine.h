// The CUDA engine as the rest of the extension sees it, in builds with CUDA and without.
#pragma once

#include <string>

#include "step/table.h"

namespace fused_optim::cuda {

/// Whether the extension was compiled with CUDA. Where not, no tensor gets as far as the rest.
bool is_built();

/// The architectures that kernels were compiled for: "8.0, 9.0".
std::string built_archs();

/// Whether the device's current stream is capturing a CUDA graph.
bool is_capturing(Device device);

/// Throws, with the kernel's name, unless the entry's device can run the kernel that steps it.
void prepare(int rule, const TensorEntry& entry);

/// Launches the step on the device's current stream.
void apply(const Bucket& bucket);

}  // namespace fused_optim::cuda
