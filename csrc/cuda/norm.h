// Norms and scaling of gradients on CUDA devices, in builds with CUDA and without.
#pragma once

#include "reduce/clip_and_skip.h"
#include "reduce/gradients.h"

namespace fused_optim::cuda {

/// Writes the sum of terms of each chunk of this device's gradients to its place in `sums`, which
/// is on the device. Like all here, on the device's current stream.
void sum_chunks(const Gradients& gradients, Device device, NormType type, double* sums);

/// Decides by the norm from the norm, which the sums of all chunks give.
void finish_norm(const double* sums, int64_t count, NormType type, Device device,
                 const ClipAndSkip& rule);

/// Multiplies this device's gradients by min(1, max_norm / (norm + 1e-6)), the norm being on it.
void scale(const Gradients& gradients, Device device, const double* norm, double max_norm);

}  // namespace fused_optim::cuda
