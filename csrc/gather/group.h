// One parameter group as a step begins: its list of parameters and its hyperparameters, read from
// its dict. No other reading of a step runs code of the user's (a number's `__float__`).
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>
#include <torch/csrc/utils/object_ptr.h>

#include <optional>
#include <utility>
#include <vector>

#include "gather/group_items.h"
#include "gather/state_dtypes.h"
#include "gather/state_rows.h"
#include "gather/step_options.h"
#include "step/table.h"

namespace fused_optim {

/// Owns what it refers to, so that it stays as read whatever runs meanwhile.
struct ParamGroup {
  THPObjectPtr params;                              // a list
  double values[kMaxHyperparameters];               // on the host, as far as they are known there
  std::vector<std::pair<int, at::Tensor>> tensors;  // else on a device
  RowMask rows = 0;                                 // the states that hyperparameters switch on
  StateMask mask = 0;                               // those of the parameter's shape among them
  std::optional<at::ScalarType> dtypes[kMaxRows];   // that are asked for, by row
  bool maximize = false;
  int master_bits = 0;  // of its bfloat16 parameters
  bool stochastic_rounding = false;
  bool asks_for_compact = false;  // by one of these, or by codes
};

/// Reads a group. Throws NotFused where the group is mangled, or where a value is one that torch's
/// own step treats in a way of its own: where torch raises, or tests for more than zero.
/// `of_optimizer`: how tensors are kept where the group doesn't say. `last`: of the group before.
/// `optimizer`, `number`: for errors.
ParamGroup read_group(PyObject* group, const RuleRows& rows, const RuleSpec& rule,
                      const StepOptions& of_optimizer, LastKeys& last, const char* optimizer,
                      Py_ssize_t number);

/// The value of a hyperparameter of the rule, read on the host wherever it is.
double value_of(const ParamGroup& group, const RuleSpec& rule, const char* hyperparameter);

inline bool is_switched_on(const ParamGroup& group, const RuleSpec& rule,
                           const char* hyperparameter) {
  return value_of(group, rule, hyperparameter) != 0;
}

/// The group's row for parameters on this device, maximize's sign in it. For a CUDA
/// device, values in CUDA tensors stay there; copies made for it, if any, are added to `owned`.
HyperparameterRow row_on(const ParamGroup& group, const RuleSpec& rule, Device device,
                         std::vector<at::Tensor>& owned);

}  // namespace fused_optim
