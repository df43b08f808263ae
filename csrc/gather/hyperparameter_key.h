// The keys of param_groups that a rule reads.
#pragma once

#include <Python.h>

#include <vector>

#include "rules/rule.h"

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

}  // namespace fused_optim
