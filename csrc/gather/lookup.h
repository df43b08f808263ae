// The Python objects of a step: parameters, gradients and state entries, found but not checked.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include <algorithm>
#include <span>
#include <vector>

#include "gather/python_tensor.h"
#include "gather/sharded.h"
#include "gather/state_rows.h"

namespace fused_optim {

/// What a step of this rule looks for.
const RuleRows& rows_of(int rule);
PyObject* params_key();
PyObject* maximize_key();
PyObject* state_dtype_key();
PyObject* master_bits_key();
PyObject* stochastic_rounding_key();
/// torch.nn.Parameter as Python has it.
extern PyTypeObject* parameter_type;

/// Whether it is exactly torch.Tensor or torch.nn.Parameter.
inline bool is_plain_type(PyObject* object) {
  return Py_TYPE(object) == parameter_type || is_exact_tensor(object);
}

/// Whether it is exactly a dict or a defaultdict: others may give other items than they hold.
bool is_plain_dict(PyObject* object);

/// Whether it is a torch.Tensor or of a subclass: by its type alone, as isinstance would ask the
/// object for its `__class__`, which may be code and need not be true.
bool is_tensor(PyObject* object);

/// Throws NotFused unless looking up a parameter in `states` can't run code of the user's: a dict
/// asks a key of equal hash for its `__eq__`.
void check_keys(PyObject* states, Sharded& sharded);

/// Thrown where a state holds what compact formats keep and nobody has looked for it.
struct HasCompact {};

/// A parameter of a step with what belongs to it. All pointers are borrowed.
struct FoundParam {
  PyObject* object = nullptr;          // which the state belongs to
  PyObject* spec = nullptr;            // of a DTensor, else nullptr
  Py_ssize_t index = 0;                // in its group
  const at::Tensor* tensor = nullptr;  // of a DTensor this rank's part
  const at::Tensor* grad = nullptr;    // likewise; nullptr where there is none
  PyObject* grad_object = nullptr;     // of a DTensor's gradient, else nullptr
  PyObject* state = nullptr;           // the parameter's dict, nullptr where there is none
  PyObject* values[kMaxRows];          // by row; nullptr where missing, and of rows that are off

  /// With room for so many rows: the others are not for reading.
  explicit FoundParam(int num_rows) { std::fill_n(values, num_rows, nullptr); }
};

/// What is looked up for each parameter, and where.
struct Lookup {
  const RuleRows& rows;
  RowMask are_on;
  PyObject* states;
  Sharded& sharded;
  int num_rows;  // that may be on

  bool is_on(int row) const { return (are_on >> row) & 1u; }
  bool with_averages() const { return is_on(rows.average()); }
};

/// Finds, without running any Python code, what belongs to `count` parameters of a group, `params`,
/// the first being the group's number `first`; `found` takes those that have a gradient, and with
/// averages those that have one.
///
/// A step visits some 40 cache lines a tensor, each found through the one before, and after a
/// backward pass none is in the cache. So a batch goes level by level, asking for all lines of the
/// next level ahead. Measured on 3000 tensors: 1.0 us a tensor one by one, 0.4 us in batches.
void find_batch(const Lookup& lookup, PyObject* const* params, Py_ssize_t first, Py_ssize_t count,
                std::vector<FoundParam>& found);

constexpr Py_ssize_t kBatch = 16;

/// Interns the keys of all rules; the types are torch.nn.Parameter and collections.defaultdict.
void initialize_lookup(PyObject* parameter, PyObject* defaultdict_type);

}  // namespace fused_optim
