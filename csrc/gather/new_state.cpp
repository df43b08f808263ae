#include "gather/new_state.h"

#include <algorithm>
#include <stdexcept>

#include "base/errors.h"
#include "gather/python_dict.h"
#include "gather/python_tensor.h"

namespace fused_optim {
namespace {

/// The object, of which the call gave a new reference. Throws PythonError where it failed.
THPObjectPtr checked(PyObject* result) {
  if (result == nullptr) throw PythonError();
  return THPObjectPtr(result);
}

void check(int status) {
  if (status < 0) throw PythonError();
}

}  // namespace

at::Tensor& NewState::add(PyObject* key) {
  if (num_tensors_ == kCapacity)
    throw std::logic_error("fused_optim: a parameter gets more state than its rule has");
  keys_[num_tensors_] = key;
  return tensors_[num_tensors_++];
}

at::Tensor& NewState::add_like_param(PyObject* key) {
  at::Tensor& tensor = add(key);
  are_like_param_[num_tensors_ - 1] = true;
  return tensor;
}

THPObjectPtr NewState::make_object(int i) const {
  THPObjectPtr object = checked(object_of(tensors_[i]));
  if (!is_sharded_ || !are_like_param_[i]) return object;
  THPObjectPtr module = checked(PyImport_ImportModule("fused_optim.sharding"));
  return checked(PyObject_CallMethod(module, "state_like", "OO", param, object.get()));
}

THPObjectPtr NewState::make_dict() const {
  THPObjectPtr dict = checked(PyDict_New());
  for (int i = 0; i < num_tensors_; ++i) check(PyDict_SetItem(dict, keys_[i], make_object(i)));
  return dict;
}

NewStateObjects::NewStateObjects(const std::vector<NewState>& new_states) {
  if (new_states.empty()) return;
  // All is owned before the first object is made.
  std::vector<THPObjectPtr> params, existing;
  for (const NewState& created : new_states) {
    params.push_back(owned(created.param));
    existing.push_back(created.existing == nullptr ? THPObjectPtr() : owned(created.existing));
  }
  by_param_ = checked(PyDict_New());
  for (size_t i = 0; i < new_states.size(); ++i) {
    THPObjectPtr dict = new_states[i].make_dict();
    if (!existing[i])
      check(PyDict_SetItem(by_param_, params[i], dict));
    else
      additions_.push_back({std::move(existing[i]), std::move(dict)});
  }
  size_t items = 0;
  for (Addition& addition : additions_) items += PyDict_GET_SIZE(addition.items.get());
  replaced_.reserve(items);
}

bool NewStateObjects::insert(Addition& addition) {
  PyObject *key, *value;
  for (Py_ssize_t position = 0; PyDict_Next(addition.items, &position, &key, &value);) {
    PyObject* before = PyDict_GetItemWithError(addition.dict, key);
    if (before == nullptr && PyErr_Occurred()) return false;
    replaced_.push_back({addition.dict, key, before ? owned(before) : THPObjectPtr()});
    if (PyDict_SetItem(addition.dict, key, value) < 0) return false;
  }
  return true;
}

void NewStateObjects::link(PyObject* state) {
  if (!by_param_) return;
  const bool all = std::ranges::all_of(additions_, [&](Addition& a) { return insert(a); });
  // Merging takes the hashes from the other dict, where a plain insertion would call each
  // parameter's `__hash__`.
  if (all && PyDict_Update(state, by_param_) == 0) return;
  undo(state);
  throw PythonError();
}

void NewStateObjects::undo(PyObject* state) {
  if (!by_param_) return;
  PyObject *type, *error, *traceback, *key, *value;
  PyErr_Fetch(&type, &error, &traceback);
  for (Py_ssize_t position = 0; PyDict_Next(by_param_, &position, &key, &value);)
    if (PyDict_GetItemWithError(state, key) == value) PyDict_DelItem(state, key);
  for (; !replaced_.empty(); replaced_.pop_back()) {
    Replaced& last = replaced_.back();
    if (last.value)
      PyDict_SetItem(last.dict, last.key, last.value);
    else if (PyDict_GetItemWithError(last.dict, last.key) != nullptr)
      PyDict_DelItem(last.dict, last.key);
  }
  PyErr_Restore(type, error, traceback);  // in the place of whatever came up meanwhile
}

}  // namespace fused_optim
