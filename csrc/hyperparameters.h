// One parameter group's hyperparameters, read from its dict into a row of doubles.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include <vector>

#include "table.h"

namespace fused_optim {

/// An interned key of a param_group, with an index where the value is an item of a tuple.
struct HyperparameterKey {
  PyObject* key;
  Py_ssize_t item;  // -1: the value itself
};

/// The keys of a rule, from its names ("betas[1]" is key "betas", item 1).
std::vector<HyperparameterKey> intern_hyperparameters(const RuleSpec& rule);

/// A number from a float, int, bool, anything with __float__, or a one-element tensor.
/// Throws NotFused where it is none of these or takes part in autograd.
double read_number(PyObject* value, const char* name);

/// The value of one hyperparameter, read on the host wherever it is.
double read_value(PyObject* group, const HyperparameterKey& key, const char* name);

/// Which states the group's hyperparameters switch on.
Variant read_variant(PyObject* group, const std::vector<HyperparameterKey>& keys,
                     const RuleSpec& rule);

/// The group's row for parameters on this device, maximize's sign its grad_multiplier. For a CUDA
/// device, values in CUDA tensors stay there; copies made for it, if any, are added to `owned`.
HyperparameterRow read_row(PyObject* group, const std::vector<HyperparameterKey>& keys,
                           const RuleSpec& rule, Device device, std::vector<at::Tensor>& owned);

}  // namespace fused_optim
