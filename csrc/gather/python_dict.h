// References to Python objects, and lookups in dicts.
#pragma once

#include <Python.h>
#include <torch/csrc/utils/object_ptr.h>

#include "base/errors.h"

namespace fused_optim {

/// A reference of one's own to a borrowed object.
inline THPObjectPtr owned(PyObject* borrowed) {
  Py_INCREF(borrowed);
  return THPObjectPtr(borrowed);
}

/// The value, borrowed, or nullptr where there is none. Throws PythonError if the lookup failed.
inline PyObject* get_item(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred()) throw PythonError();
  return value;
}

/// A string that dicts know by its address, for as long as the process lives.
inline PyObject* intern(const char* name) {
  PyObject* key = PyUnicode_InternFromString(name);
  if (key == nullptr) throw PythonError();
  return key;
}

}  // namespace fused_optim
