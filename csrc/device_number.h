// Numbers that a user keeps in one-element CUDA tensors, which the host must not wait for.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include "table.h"

namespace fused_optim {

/// Whether it is a plain one-element CUDA tensor of a float dtype that takes no part in autograd.
bool is_device_number(PyObject* value);

at::Device torch_device(Device device);

/// The tensor itself, or where device or dtype differ a copy; the host waits only for one to a CPU.
at::Tensor to_device(const at::Tensor& tensor, Device device, at::ScalarType dtype);

}  // namespace fused_optim
