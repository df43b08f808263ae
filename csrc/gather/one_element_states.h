// The one-element tensors in a parameter's state: `step`, and a rule's scalar states. On the host
// for CPU parameters; on the device for CUDA parameters, where kernels read and advance them.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include "step/table.h"
#include "tensors/checks.h"

namespace fused_optim {

/// The tensor in a state dict. Throws unless it is a plain tensor type (else NotFused).
const at::Tensor& state_tensor(const Where& where, PyObject* value, const char* name);

/// The `step` of the state dict, checked but for its device and value.
const at::Tensor& existing_step(const Where& where, PyObject* value);

/// A scalar state of the state dict, checked likewise.
const at::Tensor& existing_scalar_state(const Where& where, PyObject* value, const char* name);

/// Whether `step` can serve parameters of this device as it is.
bool step_fits(const at::Tensor& step, Device device);

/// A `step` of zero for a parameter on this device, of the dtype that torch gives it.
at::Tensor new_step(Device device);

/// The `step` with the same value for this device. To a CUDA device, the host does not wait.
at::Tensor moved_step(const Where& where, const at::Tensor& step, Device device);

/// A scalar state for a parameter on this device, of the dtype that torch gives it.
at::Tensor new_scalar(Device device, double value);

/// Whether a scalar state is where parameters of this device need it.
bool scalar_fits(const at::Tensor& scalar, Device device);

/// The scalar state with the same value and dtype for this device, likewise.
at::Tensor moved_scalar(const at::Tensor& scalar, Device device);

/// Throws unless it is a number of steps that powers can be computed for.
void check_count(const Where& where, double count);

}  // namespace fused_optim
