// Makes a checked step visible to Python: new state, step counts, versions.
#include <torch/csrc/autograd/python_variable.h>

#include "gather.h"
#include "lookup.h"

namespace fused_optim {
namespace {

void set_tensor(PyObject* dict, PyObject* key, const at::Tensor& tensor) {
  PyObject* wrapped = THPVariable_Wrap(tensor);
  const bool failed = wrapped == nullptr || PyDict_SetItem(dict, key, wrapped) < 0;
  Py_XDECREF(wrapped);
  if (failed) throw PythonError();
}

void insert_state(const NewState& created, PyObject* state) {
  PyObject* dict = created.existing;
  if (dict != nullptr)
    Py_INCREF(dict);
  else
    dict = PyDict_New();
  try {
    if (dict == nullptr) throw PythonError();
    // `step` comes first, as in torch's own state.
    if (created.step.defined()) set_tensor(dict, step_key(), created.step);
    for (int i = 0; i < created.num_states; ++i)
      set_tensor(dict, created.keys[i], created.tensors[i]);
    if (created.existing == nullptr && PyDict_SetItem(state, created.param, dict) < 0)
      throw PythonError();
  } catch (...) {
    Py_XDECREF(dict);
    throw;
  }
  Py_DECREF(dict);
}

}  // namespace

void commit(Gathered& gathered, PyObject* state) {
  for (const NewState& created : gathered.new_states) insert_state(created, state);
  for (const HostStep& step : gathered.steps) {
    TensorEntry& entry = gathered.table.entries[step.entry];
    // A step tensor that several parameters share advances once for each, as in torch.
    entry.step = step.dtype == DType::Float32 ? (*static_cast<float*>(step.data) += 1)
                                              : (*static_cast<double*>(step.data) += 1);
  }
  for (c10::TensorImpl* tensor : gathered.written) tensor->bump_version();
}

}  // namespace fused_optim
