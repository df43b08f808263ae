// A state of the parameter's shape as it is, or of a DTensor this rank's part.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include "gather/gathered.h"
#include "gather/lookup.h"
#include "tensors/checks.h"

namespace fused_optim {

/// Checked to be a tensor that is placed as its parameter is; a DTensor is noted as written. Throws
/// the error that names it, or NotFused.
const at::Tensor& local_state(const Where& where, Sharded& sharded, Gathered& gathered,
                              const FoundParam& found, PyObject* value, const char* name);

}  // namespace fused_optim
