// Lookups in Python dicts with interned keys.
#pragma once

#include <Python.h>

#include "gather.h"

namespace fused_optim {

/// The value, borrowed, or nullptr where there is none. Throws PythonError if the lookup failed.
inline PyObject* get_item(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred()) throw PythonError();
  return value;
}

}  // namespace fused_optim
