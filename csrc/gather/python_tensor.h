// Tensors as Python objects. torch's headers for them bring pybind11 and the autograd engine along,
// which costs a compiler fifteen seconds: python_tensor.cpp alone includes them.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>
#include <torch/csrc/Export.h>

#include <cstddef>

// torch's own, declared again: python_tensor.cpp, which sees both, does not compile if they differ.
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

}  // namespace fused_optim
