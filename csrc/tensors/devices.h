// Devices as torch names them, and numbers on their way from one to another.
#pragma once

#include <ATen/core/Tensor.h>

#include "base/device.h"

namespace fused_optim {

at::Device torch_device(Device device);

/// The tensor itself, or where device or dtype differ a copy; the host waits only for one to a CPU.
at::Tensor to_device(const at::Tensor& tensor, Device device, at::ScalarType dtype);

}  // namespace fused_optim
