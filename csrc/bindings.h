// What the files of bindings share.
#pragma once

#include <pybind11/pybind11.h>
#include <torch/csrc/Exceptions.h>

#include <string>

#include "gather/lookup.h"
#include "gather/python_tensor.h"
#include "rules/registry.h"
#include "tensors/checks.h"

namespace fused_optim {

namespace py = pybind11;

/// Code of a tensor subclass that an operation has called failed: pybind11's way of saying it.
[[noreturn]] inline void rethrow(python_error& error) {
  error.restore();
  throw py::error_already_set();
}

/// The tensor in a Python object. Throws TypeError where it is none.
inline const at::Tensor& tensor_in(const py::handle& object) {
  if (!is_tensor(object.ptr()))
    throw py::type_error(std::string("expected a Tensor, not ") + Py_TYPE(object.ptr())->tp_name);
  return unpack(object.ptr());
}

/// The same of a plain tensor of one element, which lies within its storage.
inline const at::Tensor& number_in(const py::handle& object) {
  const at::Tensor& tensor = tensor_in(object);
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  if (!is_plain(impl) || tensor.numel() != 1 || !lies_within_storage(impl))
    throw py::value_error("expected a plain tensor of one element");
  return tensor;
}

/// None where there is none.
inline py::object wrap(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(object_of(tensor));
}

inline void check_rule(int rule) {
  if (rule < 0 || rule >= kNumRules) throw py::index_error("no such rule");
}

/// Adds what only tests call.
void add_bindings_for_tests(py::module_& m);

/// Adds what checkpoints and masters ask of compact formats.
void add_bindings_for_compact(py::module_& m);

/// Adds what is entered and left by `with`.
void add_bindings_for_contexts(py::module_& m);

/// Adds StepOptions.
void add_bindings_for_options(py::module_& m);

}  // namespace fused_optim
