// Numbers that users give: Python's, or one-element tensors, for whose values on a CUDA device the
// host must not wait.
#pragma once

#include <Python.h>

namespace fused_optim {

/// Whether it is a plain one-element CUDA tensor of a float dtype that takes no part in autograd.
bool is_device_number(PyObject* value);

/// A number from a float, int, bool, anything with __float__, or a one-element tensor.
/// Throws NotFused where it is none of these or takes part in autograd.
double read_number(PyObject* value, const char* name);

}  // namespace fused_optim
