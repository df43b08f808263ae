// From Python's param_groups and state to a checked TensorTable.
#pragma once

#include <Python.h>

#include "gather/across_ranks.h"
#include "gather/amp.h"
#include "gather/gathered.h"
#include "gather/sharded.h"
#include "gather/step_options.h"

namespace fused_optim {

/// What Python hands to a step. `name`: the optimizer's, for errors. `across_ranks`: nullptr where
/// no other rank is asked.
struct StepArguments {
  int rule;
  const char* name;
  PyObject *param_groups, *state, *grad_scale, *found_inf;
  const AcrossRanks* across_ranks;
};

/// Reads and checks, changing nothing. Code of the user's runs only at the beginning, while the
/// groups are read; tensors are borrowed from then on. Throws NotFused, or std::runtime_error that
/// names group, parameter and tensor for bad input, or leaves a Python error set and throws
/// PythonError.
Gathered gather(const StepArguments& arguments, Amp& amp, const StepOptions& options);

}  // namespace fused_optim
