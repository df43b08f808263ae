#include "tensors/devices.h"

namespace fused_optim {

at::Device torch_device(Device device) {
  if (device.kind == DeviceKind::CPU) return at::kCPU;
  return {at::kCUDA, device.index};
}

at::Tensor to_device(const at::Tensor& tensor, Device device, at::ScalarType dtype) {
  const bool to_cpu = device.kind == DeviceKind::CPU;
  return tensor.to(torch_device(device), dtype, /*non_blocking=*/!to_cpu);
}

}  // namespace fused_optim
