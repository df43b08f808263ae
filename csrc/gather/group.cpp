#include "gather/group.h"

#include <cmath>
#include <string>
#include <string_view>

#include "base/errors.h"
#include "gather/lookup.h"
#include "gather/number.h"
#include "gather/python_dict.h"
#include "gather/python_tensor.h"
#include "tensors/checks.h"
#include "tensors/devices.h"

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
  const bool is_list = PyList_CheckExact(value);
  if (!is_list && !PyTuple_CheckExact(value))
    throw NotFused(std::string("'") + name + "' is not in a tuple");
  const Py_ssize_t size = is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
  if (key.item >= size) throw NotFused(std::string("'") + name + "' is missing");
  return is_list ? PyList_GET_ITEM(value, key.item) : PyTuple_GET_ITEM(value, key.item);
}

THPObjectPtr read_params(PyObject* group) {
  PyObject* params = is_plain_dict(group) ? get_item(group, params_key()) : nullptr;
  if (params == nullptr || !PyList_CheckExact(params))
    throw NotFused("a parameter group is no dict with a list of params");
  return owned(params);
}

/// Outside, torch's own step does something else than the formula says: it divides by zero, a
/// number overflows its dtype, a state is there only where a value is above zero, or (Rprop) a
/// gradient is dropped wherever its factor equals etas[0].
std::pair<double, double> usual_range_of(std::string_view name) {
  // Beyond it a product or quotient of several values could leave float's range.
  constexpr double kLargest = 1e15;
  const double below_1 = std::nextafter(1.0, 0.0);
  if (name.starts_with("betas[")) return {0.0, below_1};
  // A factor that is 0 in the parameter's dtype is 1 to torch: above the least of float16.
  if (name == "etas[0]") return {1e-7, below_1};
  if (name == "alpha") return {-4.0, 4.0};  // ASGD's exponent
  return {name == "etas[1]" ? 1.0 : 0.0, kLargest};
}

double read_usual_number(PyObject* object, const HyperparameterKey& key, const char* name) {
  const double value = read_number(object, name);
  if (key.is_flag) return value != 0.0;
  if (value >= key.lowest && value <= key.highest) return value;
  throw NotFused(std::string("'") + name + "' is " + std::to_string(value) +
                 ", which torch's own step knows how to take");
}

/// The tensor that holds a value on a device, or nullptr.
const at::Tensor* tensor_of(const ParamGroup& group, int index) {
  for (const auto& [of, tensor] : group.tensors)
    if (of == index) return &tensor;
  return nullptr;
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
    const auto [lowest, highest] = usual_range_of(name);
    const bool is_flag = name == "amsgrad" || name == "decoupled_weight_decay" ||
                         name == "nesterov" || name == "centered";
    keys.push_back({key, item, lowest, highest, is_flag});
  }
  return keys;
}

ParamGroup read_group(PyObject* group, const std::vector<HyperparameterKey>& keys,
                      const RuleSpec& rule) {
  ParamGroup read;
  read.params = read_params(group);
  if (PyList_GET_SIZE(read.params.get()) == 0) return read;
  for (size_t i = 0; i < keys.size(); ++i) {
    const char* name = rule.hyperparameters[i];
    PyObject* value = find_value(group, keys[i], name);
    if (is_device_number(value))
      read.tensors.emplace_back(i, unpack(value));
    else
      read.values[i] = read_usual_number(value, keys[i], name);
  }
  read.maximize = read_number(find(group, maximize_key(), "maximize"), "maximize") != 0;
  for (int i = 0; i < rule.num_states; ++i) {
    const char* enabled_by = rule.states[i].enabled_by;
    if (enabled_by == nullptr || value_of(read, hyperparameter_index(rule, enabled_by)) != 0)
      read.mask |= 1u << i;
  }
  return read;
}

double value_of(const ParamGroup& group, int index) {
  const at::Tensor* tensor = tensor_of(group, index);
  return tensor != nullptr ? tensor->item().toDouble() : group.values[index];
}

HyperparameterRow row_on(const ParamGroup& group, const RuleSpec& rule, Device device,
                         std::vector<at::Tensor>& owned) {
  HyperparameterRow row{};
  for (int i = 0; i < rule.num_hyperparameters; ++i) {
    const at::Tensor* tensor = tensor_of(group, i);
    if (device.kind == DeviceKind::CPU || tensor == nullptr) {
      row.values[i] = value_of(group, i);
      continue;
    }
    const bool is_float = tensor->scalar_type() == at::kFloat;
    owned.push_back(to_device(*tensor, device, is_float ? at::kFloat : at::kDouble));
    row.addresses[i] = owned.back().const_data_ptr();
    if (!is_float) row.are_doubles |= 1u << i;
  }
  row.grad_multiplier = group.maximize ? -1.0 : 1.0;
  return row;
}

}  // namespace fused_optim
