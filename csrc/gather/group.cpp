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

namespace {

void check_is_state(const RuleSpec& rule, const std::string& name) {
  for (int i = 0; i < rule.num_states; ++i)
    if (rule.states[i].is_like_param() && name == rule.states[i].name) return;
  throw std::invalid_argument("a dict with " + name + ", no state of its parameter's shape");
}

/// What the group says of its states' dtypes, else what the optimizer does.
StateDtypes state_dtypes_of(PyObject* group, const StateDtypes& of_optimizer, const char* optimizer,
                            Py_ssize_t number, const RuleSpec& rule) {
  PyObject* value = get_item(group, state_dtype_key());
  if (value == nullptr) return of_optimizer;
  try {
    StateDtypes read = read_state_dtypes(value);
    for (const auto& [name, dtype] : read.by_name) check_is_state(rule, name);
    return read;
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error(std::string("fused_optim.") + optimizer + ": group " +
                             std::to_string(number) + ": state_dtype is " + error.what() +
                             ". Nothing was changed.");
  }
}

}  // namespace

ParamGroup read_group(PyObject* group, const RuleRows& rows, const RuleSpec& rule,
                      const StateDtypes& of_optimizer, const char* optimizer, Py_ssize_t number) {
  ParamGroup read;
  read.params = read_params(group);
  if (PyList_GET_SIZE(read.params.get()) == 0) return read;
  for (size_t i = 0; i < rows.hyperparameters.size(); ++i) {
    const char* name = rule.hyperparameters[i];
    PyObject* value = find_value(group, rows.hyperparameters[i], name);
    if (is_device_number(value))
      read.tensors.emplace_back(i, unpack(value));
    else
      read.values[i] = read_usual_number(value, rows.hyperparameters[i], name);
  }
  read.maximize = read_number(find(group, maximize_key(), "maximize"), "maximize") != 0;
  const StateDtypes dtypes = state_dtypes_of(group, of_optimizer, optimizer, number, rule);
  for (int i = 0; i < rule.num_states; ++i) {
    const StateSpec& state = rule.states[i];
    if (state.enabled_by != nullptr &&
        value_of(read, hyperparameter_index(rule, state.enabled_by)) == 0)
      continue;
    read.rows |= RowMask{1} << i;
    if (!state.is_like_param()) continue;
    read.mask |= StateMask{1} << rule.places[i];
    read.dtypes[i] = dtypes.of(state.name);
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
  row.sign = group.maximize ? -1.0 : 1.0;
  return row;
}

}  // namespace fused_optim
