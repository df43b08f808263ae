// State that a step creates, and scalars that it moves to the parameter's device: first as tensors,
// then as Python objects that nobody sees, at last in the optimizer's state.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>
#include <torch/csrc/utils/object_ptr.h>

#include <vector>

#include "gather/state_rows.h"

namespace fused_optim {

/// What one parameter gets.
class NewState {
 public:
  PyObject* param;     // borrowed
  PyObject* existing;  // borrowed: the parameter's state dict where there is one, else nullptr

  NewState(PyObject* owner, PyObject* state, bool is_sharded)
      : param(owner), existing(state), is_sharded_(is_sharded) {}

  /// A place for a tensor under this key, which is borrowed and interned; in torch's order.
  at::Tensor& add(PyObject* key);

  /// The same of one of the parameter's shape: where that is a DTensor, this rank's part, which
  /// becomes a DTensor that is placed alike.
  at::Tensor& add_like_param(PyObject* key);

  /// A dict of all of them. Making it can run any Python code. Throws PythonError.
  THPObjectPtr make_dict() const;

 private:
  static constexpr int kCapacity = kMaxRows;
  THPObjectPtr make_object(int i) const;

  bool is_sharded_;
  int num_tensors_ = 0;
  bool are_like_param_[kCapacity] = {};
  PyObject* keys_[kCapacity];
  at::Tensor tensors_[kCapacity];
};

/// The Python objects of new state.
class NewStateObjects {
 public:
  /// Makes them. This runs Python code: the collector and finalizers, the parameters' `__hash__`,
  /// and with it signal handlers and other threads. Throws PythonError.
  explicit NewStateObjects(const std::vector<NewState>& new_states);

  /// Puts all of them into the optimizer's state, or none: throws PythonError where there is no
  /// memory. Runs no Python code, unless a key whose comparison does has come in meanwhile.
  void link(PyObject* state);

  /// Takes them out again.
  void undo(PyObject* state);

 private:
  /// Items for a dict that is there already.
  struct Addition {
    THPObjectPtr dict, items;
  };

  /// What a dict held under a key before: nullptr where nothing. Owned until the step is done, so
  /// that no finalizer of it runs in between.
  struct Replaced {
    PyObject *dict, *key;  // borrowed from the addition
    THPObjectPtr value;
  };

  bool insert(Addition& addition);

  std::vector<Addition> additions_;
  std::vector<Replaced> replaced_;
  THPObjectPtr by_param_;  // the dicts of parameters that had none
};

}  // namespace fused_optim
