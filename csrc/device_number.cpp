#include "device_number.h"

#include <torch/csrc/autograd/python_variable.h>

#include "lookup.h"
#include "tensor_checks.h"

namespace fused_optim {

bool is_device_number(PyObject* value) {
  if (!THPVariable_Check(value) || !is_plain_type(value)) return false;
  const at::Tensor& tensor = THPVariable_Unpack(value);
  return tensor.is_cuda() && is_plain(*tensor.unsafeGetTensorImpl()) && tensor.numel() == 1 &&
         tensor.is_floating_point() && !tensor.requires_grad() &&
         lies_within_storage(*tensor.unsafeGetTensorImpl());
}

at::Tensor to_device(const at::Tensor& tensor, Device device, at::ScalarType dtype) {
  const bool to_cpu = device.kind == DeviceKind::CPU;
  const at::Device target = to_cpu ? at::Device(at::kCPU) : at::Device(at::kCUDA, device.index);
  return tensor.to(target, dtype, /*non_blocking=*/!to_cpu);
}

}  // namespace fused_optim
