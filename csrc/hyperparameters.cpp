#include "hyperparameters.h"

#include <torch/csrc/autograd/python_variable.h>

#include <string>

#include "device_number.h"
#include "gather.h"
#include "python_dict.h"

namespace fused_optim {
namespace {

PyObject* find(PyObject* group, PyObject* key, const char* name) {
  PyObject* value = get_item(group, key);
  if (value == nullptr) throw NotFused(std::string("a parameter group has no '") + name + "'");
  return value;
}

PyObject* find_value(PyObject* group, const HyperparameterKey& key, const char* name) {
  PyObject* value = find(group, key.key, name);
  if (key.item < 0) return value;
  const bool is_list = PyList_Check(value);
  if (!is_list && !PyTuple_Check(value))
    throw NotFused(std::string("'") + name + "' is not in a tuple");
  const Py_ssize_t size = is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
  if (key.item >= size) throw NotFused(std::string("'") + name + "' is missing");
  return is_list ? PyList_GET_ITEM(value, key.item) : PyTuple_GET_ITEM(value, key.item);
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

double read_value(PyObject* group, const HyperparameterKey& key, const char* name) {
  return read_number(find_value(group, key, name), name);
}

Variant read_variant(PyObject* group, const std::vector<HyperparameterKey>& keys,
                     const RuleSpec& rule) {
  Variant variant = 0;
  for (int i = 0; i < rule.num_states; ++i) {
    const char* enabled_by = rule.states[i].enabled_by;
    const bool enabled =
        enabled_by == nullptr ||
        read_value(group, keys[hyperparameter_index(rule, enabled_by)], enabled_by) != 0;
    if (enabled) variant |= 1u << i;
  }
  return variant;
}

HyperparameterRow read_row(PyObject* group, const std::vector<HyperparameterKey>& keys,
                           const RuleSpec& rule, Device device, std::vector<at::Tensor>& owned) {
  static PyObject* const maximize = PyUnicode_InternFromString("maximize");
  HyperparameterRow row{};
  for (size_t i = 0; i < keys.size(); ++i) {
    const char* name = rule.hyperparameters[i];
    PyObject* value = find_value(group, keys[i], name);
    if (device.kind == DeviceKind::CPU || !is_device_number(value)) {
      row.values[i] = read_number(value, name);
      continue;
    }
    const at::Tensor& tensor = THPVariable_Unpack(value);
    const bool is_float = tensor.scalar_type() == at::kFloat;
    owned.push_back(to_device(tensor, device, is_float ? at::kFloat : at::kDouble));
    row.addresses[i] = owned.back().const_data_ptr();
    if (!is_float) row.are_doubles |= 1u << i;
  }
  const bool negate = read_number(find(group, maximize, "maximize"), "maximize") != 0;
  row.grad_multiplier = negate ? -1.0 : 1.0;
  return row;
}

}  // namespace fused_optim
