// The `step` in a parameter's state: on the host for CPU parameters, as float32 on the device for
// CUDA parameters, where the kernel reads and advances it.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include "table.h"
#include "tensor_checks.h"

namespace fused_optim {

/// The tensor in a state dict. Throws unless it is a plain tensor type (else NotFused).
const at::Tensor& state_tensor(const Where& where, PyObject* value, const char* name);

/// The `step` of the state dict, checked but for its value.
const at::Tensor& existing_step(const Where& where, PyObject* value);

/// Whether the counter can serve parameters of this device as it is.
bool fits_device(const at::Tensor& step, Device device);

/// A counter of zero for a parameter on this device, of the dtype that torch gives it.
at::Tensor new_step(Device device);

/// A counter of the same value for this device. To a CUDA device, the host does not wait.
at::Tensor moved_step(const Where& where, const at::Tensor& step, Device device);

double read_count(const void* data, DType dtype);

/// Throws unless it is a number of steps that powers can be computed for.
void check_count(const Where& where, double count);

}  // namespace fused_optim
