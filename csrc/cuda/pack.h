// From a bucket to kernel tables: as many tensors in each as its bytes hold.
#pragma once

#include <vector>

#include "../table.h"
#include "kernel_table.h"

namespace fused_optim::cuda {

/// The tables of the launches that step this bucket, in order.
std::vector<KernelTable> pack(const Bucket& bucket, const DeviceInputs& inputs);

}  // namespace fused_optim::cuda
