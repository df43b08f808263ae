// From Python's param_groups and state to a checked TensorTable.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "gather/amp.h"
#include "gather/group.h"
#include "gather/new_state.h"
#include "gather/step_options.h"
#include "reduce/gradients.h"
#include "step/table.h"

namespace fused_optim {

/// A `step` tensor on the host, advanced once all is checked.
struct HostStep {
  void* data;
  DType dtype;
  int64_t entry;
};

/// A parameter whose average no kernel updates.
struct Averaged {
  at::Tensor average, param;
};

/// Everything that one step will do, nothing of it done yet.
struct Gathered {
  TensorTable table;
  std::vector<ParamGroup> groups;  // own the lists, and so the parameters
  std::vector<NewState> new_states;
  std::vector<HostStep> steps;
  std::vector<c10::TensorImpl*> written;  // borrowed: parameters and states, for their versions
  std::vector<c10::TensorImpl*> read;     // borrowed: gradients
  std::vector<c10::TensorImpl*> beside_table;  // borrowed: of parameters without a gradient
  std::vector<at::Tensor> owned;               // copies that kernels read
  Gradients gradients;                         // for the norm, where the step needs one
  std::vector<at::Tensor> copied_grads;        // not dense, so the step reads and zeroes a copy
  std::vector<Averaged> first_averages;  // the optimizer's first averages: become the parameters
  std::vector<Averaged> averages_alone;  // of parameters without a gradient
  bool host_decides = false;             // whether the step is skipped: a kernel can't
};

/// Reads and checks, changing nothing. `name`: the optimizer's, for errors. Code of the user's runs
/// only at the beginning, while the groups are read; tensors are borrowed from then on. Throws
/// NotFused, or std::runtime_error that names group, parameter and tensor for bad input, or leaves
/// a Python error set and throws PythonError.
Gathered gather(int rule, const char* name, PyObject* param_groups, PyObject* state, Amp& amp,
                const StepOptions& options);

}  // namespace fused_optim
