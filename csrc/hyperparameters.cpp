#include "hyperparameters.h"

#include <torch/csrc/autograd/python_variable.h>

#include <string>

#include "gather.h"
#include "python_dict.h"

namespace fused_optim {
namespace {

PyObject* find(PyObject* group, PyObject* key, const char* name) {
  PyObject* value = get_item(group, key);
  if (value == nullptr) throw NotFused(std::string("a parameter group has no '") + name + "'");
  return value;
}

}  // namespace

std::vector<HyperparameterKey> intern_hyperparameters(const RuleSpec& rule) {
  std::vector<HyperparameterKey> keys;
  for (int i = 0; i < rule.num_hyperparameters; ++i) {
    const std::string name = rule.hyperparameters[i];
    const size_t bracket = name.find('[');
    const Py_ssize_t item = bracket == std::string::npos ? -1 : std::stol(name.substr(bracket + 1));
    PyObject* key = PyUnicode_InternFromString(name.substr(0, bracket).c_str());
    if (key == nullptr) throw PythonError();
    keys.push_back({key, item});
  }
  return keys;
}

double read_number(PyObject* value, const char* name) {
  if (PyFloat_CheckExact(value)) return PyFloat_AS_DOUBLE(value);
  if (PyBool_Check(value)) return value == Py_True;
  if (THPVariable_Check(value)) {
    const at::Tensor& tensor = THPVariable_Unpack(value);
    if (!THPVariable_CheckExact(value) || tensor.requires_grad() || tensor.is_complex() ||
        tensor.numel() != 1 || tensor.is_meta())
      throw NotFused(std::string("'") + name + "' is a tensor that is no plain number");
    return tensor.item().toDouble();
  }
  const double number = PyFloat_AsDouble(value);
  if (number == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();
    throw NotFused(std::string("'") + name + "' is no number");
  }
  return number;
}

HyperparameterRow read_row(PyObject* group, const std::vector<HyperparameterKey>& keys,
                           const RuleSpec& rule, double grad_multiplier) {
  static PyObject* const maximize = PyUnicode_InternFromString("maximize");
  HyperparameterRow row{};
  for (size_t i = 0; i < keys.size(); ++i) {
    const char* name = rule.hyperparameters[i];
    PyObject* value = find(group, keys[i].key, name);
    if (keys[i].item >= 0) {
      const bool is_list = PyList_Check(value);
      if (!is_list && !PyTuple_Check(value))
        throw NotFused(std::string("'") + name + "' is not in a tuple");
      const Py_ssize_t size = is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
      if (keys[i].item >= size) throw NotFused(std::string("'") + name + "' is missing");
      value =
          is_list ? PyList_GET_ITEM(value, keys[i].item) : PyTuple_GET_ITEM(value, keys[i].item);
    }
    row.values[i] = read_number(value, name);
  }
  const bool negate = read_number(find(group, maximize, "maximize"), "maximize") != 0;
  row.grad_multiplier = negate ? -grad_multiplier : grad_multiplier;
  return row;
}

}  // namespace fused_optim
