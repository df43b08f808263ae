// From Python's param_groups and state to a checked TensorTable.
#pragma once

#include <Python.h>

#include "gather/amp.h"
#include "gather/gathered.h"
#include "gather/step_options.h"

namespace fused_optim {

/// Reads and checks, changing nothing. `name`: the optimizer's, for errors. Code of the user's runs
/// only at the beginning, while the groups are read; tensors are borrowed from then on. Throws
/// NotFused, or std::runtime_error that names group, parameter and tensor for bad input, or leaves
/// a Python error set and throws PythonError.
Gathered gather(int rule, const char* name, PyObject* param_groups, PyObject* state, Amp& amp,
                const StepOptions& options);

}  // namespace fused_optim
