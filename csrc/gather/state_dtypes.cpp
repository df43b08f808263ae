#include "gather/state_dtypes.h"

#include <torch/csrc/Dtype.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/utils/object_ptr.h>

#include <stdexcept>

#include "base/errors.h"

namespace fused_optim {

std::optional<c10::ScalarType> StateDtypes::of(std::string_view state) const {
  for (const auto& [name, dtype] : by_name)
    if (name == state) return dtype;
  return of_all;
}

c10::ScalarType read_dtype(PyObject* value, bool may_be_codes) {
  const char* known = may_be_codes ? ", not torch.float32, torch.bfloat16 or torch.int8"
                                   : ", not torch.float32 or torch.bfloat16";
  if (!THPDtype_Check(value))
    throw std::invalid_argument(std::string(Py_TYPE(value)->tp_name) + known);
  const c10::ScalarType dtype = reinterpret_cast<THPDtype*>(value)->scalar_type;
  if (dtype == c10::ScalarType::Float || dtype == c10::ScalarType::BFloat16 ||
      (may_be_codes && dtype == kCodes))
    return dtype;
  throw std::invalid_argument(std::string(c10::toString(dtype)) + known);
}

StateDtypes read_state_dtypes(PyObject* value) {
  StateDtypes read;
  if (value == Py_None) return read;
  if (!PyDict_CheckExact(value)) {
    read.of_all = read_dtype(value, true);
    return read;
  }
  PyObject *key, *dtype;
  for (Py_ssize_t position = 0; PyDict_Next(value, &position, &key, &dtype);) {
    if (!PyUnicode_CheckExact(key))
      throw std::invalid_argument("a dict with a key that is no string");
    const char* name = PyUnicode_AsUTF8(key);
    if (name == nullptr) throw PythonError();
    read.by_name.emplace_back(name, read_dtype(dtype, true));
  }
  return read;
}

PyObject* object_of(c10::ScalarType dtype) {
  PyObject* object = reinterpret_cast<PyObject*>(torch::getTHPDtype(dtype));
  Py_INCREF(object);
  return object;
}

PyObject* object_of(const StateDtypes& dtypes) {
  if (dtypes.of_all) return object_of(*dtypes.of_all);
  if (dtypes.by_name.empty()) Py_RETURN_NONE;
  THPObjectPtr dict(PyDict_New());
  if (!dict) throw PythonError();
  for (const auto& [name, dtype] : dtypes.by_name) {
    THPObjectPtr object(object_of(dtype));
    if (PyDict_SetItemString(dict, name.c_str(), object.get()) < 0) throw PythonError();
  }
  return dict.release();
}

}  // namespace fused_optim
