// A Python list of gradients, read and checked.
#pragma once

#include <Python.h>

#include "reduce/gradients.h"
#include "reduce/norm.h"

namespace fused_optim {

/// The gradients of a Python list of tensors. Throws NotFused where one is not plain, dense and of
/// a dtype and device that have kernels, or where they overlap and are to be written: two threads
/// would scale one element, each or both.
Gradients read_gradients(PyObject* list, bool are_written = false);

/// The type for torch's norm_type. Throws NotFused for others than 1, 2 and infinity, and where
/// complex gradients need the absolute value of each element.
NormType read_norm_type(double norm_type, PyObject* gradients);

}  // namespace fused_optim
