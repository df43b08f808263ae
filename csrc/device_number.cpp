#include "device_number.h"

#include "lookup.h"
#include "tensor_checks.h"
#include "torch_calls.h"

namespace fused_optim {

bool is_device_number(PyObject* value) {
  if (!is_plain_type(value)) return false;
  const at::Tensor& tensor = unpack(value);
  return tensor.is_cuda() && is_plain(*tensor.unsafeGetTensorImpl()) && tensor.numel() == 1 &&
         tensor.is_floating_point() && !tensor.requires_grad() &&
         lies_within_storage(*tensor.unsafeGetTensorImpl());
}

at::Device torch_device(Device device) {
  if (device.kind == DeviceKind::CPU) return at::kCPU;
  return {at::kCUDA, device.index};
}

at::Tensor to_device(const at::Tensor& tensor, Device device, at::ScalarType dtype) {
  const bool to_cpu = device.kind == DeviceKind::CPU;
  return tensor.to(torch_device(device), dtype, /*non_blocking=*/!to_cpu);
}

}  // namespace fused_optim
