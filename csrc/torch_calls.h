// torch's functions whose headers cost a compiler's time: for tensors as Python objects, which
// bring pybind11 and the autograd engine along (fifteen seconds), and for new tensors (three).
// torch_calls.cpp alone includes them.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>
#include <torch/csrc/Export.h>

#include <cstddef>

// torch's own, declared again: torch_calls.cpp, which sees both, does not compile if they differ.
TORCH_PYTHON_API extern PyObject* THPVariableClass;
TORCH_PYTHON_API extern PyObject* ParameterClass;

namespace fused_optim {

/// Where in a torch.Tensor object its tensor lies, in bytes.
extern const Py_ssize_t kTensorOffset;

/// The tensor of a torch.Tensor object, which owns it. Inline, as a step asks ten times a tensor.
inline const at::Tensor& unpack(PyObject* object) {
  return *reinterpret_cast<const at::Tensor*>(reinterpret_cast<const char*>(object) +
                                              kTensorOffset);
}

/// A new reference to the tensor's object. Makes one, which can run Python code, where it has none;
/// nullptr with a Python error set if that failed.
PyObject* object_of(const at::Tensor& tensor);

/// Whether it is exactly torch.Tensor or torch.nn.Parameter, as torch knows them.
inline bool is_exact_tensor(PyObject* object) {
  PyObject* type = reinterpret_cast<PyObject*>(Py_TYPE(object));
  return type == THPVariableClass || type == ParameterClass;
}

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor full(at::IntArrayRef sizes, const at::Scalar& value, const at::TensorOptions& options);

/// Of the tensor's shape, dtype and device, and of its strides where it is dense.
at::Tensor empty_like(const at::Tensor& tensor);
at::Tensor full_like(const at::Tensor& tensor, const at::Scalar& value);

}  // namespace fused_optim
