#include "gather/number.h"

#include <string>

#include "base/errors.h"
#include "gather/lookup.h"
#include "gather/python_dict.h"
#include "gather/python_tensor.h"
#include "tensors/checks.h"

namespace fused_optim {

bool is_device_number(PyObject* value) {
  if (!is_plain_type(value)) return false;
  const at::Tensor& tensor = unpack(value);
  return tensor.is_cuda() && is_plain(*tensor.unsafeGetTensorImpl()) && tensor.numel() == 1 &&
         tensor.is_floating_point() && !tensor.requires_grad() &&
         lies_within_storage(*tensor.unsafeGetTensorImpl());
}

double read_number(PyObject* value, const char* name) {
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  if (PyBool_Check(value)) return value == Py_True;
  if (is_tensor(value)) {
    const at::Tensor& tensor = unpack(value);
    if (!is_exact_tensor(value) || !is_plain(*tensor.unsafeGetTensorImpl()) ||
        tensor.requires_grad() || tensor.is_complex() || tensor.numel() != 1)
      throw NotFused(std::string("'") + name + "' is a tensor that is no plain number");
    return tensor.item().toDouble();
  }
  // Owned: `__float__` may take it out of the group.
  const THPObjectPtr owner = owned(value);
  const double number = PyFloat_AsDouble(value);
  if (number == -1.0 && PyErr_Occurred()) {
    const bool is_interrupt = !PyErr_ExceptionMatches(PyExc_Exception);
    if (is_interrupt || PyErr_ExceptionMatches(PyExc_MemoryError)) throw PythonError();
    PyErr_Clear();
    throw NotFused(std::string("'") + name + "' is no number");
  }
  return number;
}

}  // namespace fused_optim
