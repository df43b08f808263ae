// The CUDA kernels, run on the host: block after block, each phase for all of its threads.
#pragma once

#include "cuda/fill_tables.h"
#include "reduce/gradients.h"
#include "step/table.h"

namespace fused_optim::cuda {

/// Does on host memory what a launch of this shape does on the device. For tests, which thereby
/// check the kernels' arithmetic and indexing where there is no GPU. Returns the launches.
int run_on_host(const Bucket& bucket, const DeviceInputs& inputs, uint32_t blocks,
                uint32_t threads);

/// The norm of gradients in host memory as launches of this many blocks compute it.
double norm_on_host(const Gradients& gradients, NormType type, uint32_t blocks);

/// Scales them by that norm.
void scale_on_host(const Gradients& gradients, double norm, double max_norm, uint32_t blocks);

}  // namespace fused_optim::cuda
