// One parameter group as a step begins: its list of parameters and its hyperparameters, read from
// its dict. No other reading of a step runs code of the user's (a number's `__float__`).
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>
#include <torch/csrc/utils/object_ptr.h>

#include <vector>

#include "step/table.h"

namespace fused_optim {

/// An interned key of a param_group, with an index where the value is an item of a tuple, and the
/// values for which torch's own step does what the formula says.
struct HyperparameterKey {
  PyObject* key;
  Py_ssize_t item;  // -1: the value itself
  double lowest, highest;
  bool is_flag;  // torch asks for its truth alone
};

/// The keys of a rule, from its names ("betas[1]" is key "betas", item 1).
std::vector<HyperparameterKey> intern_hyperparameters(const RuleSpec& rule);

/// Owns what it refers to, so that it stays as read whatever runs meanwhile.
struct ParamGroup {
  THPObjectPtr params;                              // a list
  double values[kMaxHyperparameters];               // on the host, as far as they are known there
  std::vector<std::pair<int, at::Tensor>> tensors;  // else on a device
  StateMask mask = 0;                               // the states that hyperparameters switch on
  bool maximize = false;
};

/// Reads a group. Throws NotFused where the group is mangled, or where a value is one that torch's
/// own step treats in a way of its own: where torch raises, or tests for more than zero.
ParamGroup read_group(PyObject* group, const std::vector<HyperparameterKey>& keys,
                      const RuleSpec& rule);

/// The value of the rule's hyperparameter of this number, on the host wherever it is.
double value_of(const ParamGroup& group, int index);

/// The group's row for parameters on this device, maximize's sign its grad_multiplier. For a CUDA
/// device, values in CUDA tensors stay there; copies made for it, if any, are added to `owned`.
HyperparameterRow row_on(const ParamGroup& group, const RuleSpec& rule, Device device,
                         std::vector<at::Tensor>& owned);

}  // namespace fused_optim
