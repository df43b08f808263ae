#include "gather/group.h"

#include <cmath>
#include <iterator>
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

THPObjectPtr read_params(PyObject* group) {
  PyObject* params = is_plain_dict(group) ? get_item(group, params_key()) : nullptr;
  if (params == nullptr || !PyList_CheckExact(params))
    throw NotFused("a parameter group is no dict with a list of params");
  return owned(params);
}

/// Whether reading this number runs no code of the user's.
bool is_plain_number(PyObject* value) {
  return PyFloat_CheckExact(value) || PyBool_Check(value) || PyLong_CheckExact(value);
}

double read_number_of(GroupItems& items, PyObject* value, const char* name) {
  if (!is_plain_number(value)) items.may_have_changed();
  return read_number(value, name);
}

double read_usual_number(GroupItems& items, PyObject* object, const HyperparameterKey& key,
                         const char* name) {
  const double value = read_number_of(items, object, name);
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

void check_is_state(const RuleSpec& rule, const std::string& name) {
  for (int i = 0; i < rule.num_states; ++i)
    if (rule.states[i].is_like_param() && name == rule.states[i].name) return;
  throw std::invalid_argument("a dict with " + name + ", no state of its parameter's shape");
}

double value_at(const ParamGroup& group, int index) {
  const at::Tensor* tensor = tensor_of(group, index);
  return tensor != nullptr ? tensor->item().toDouble() : group.values[index];
}

/// Throws std::invalid_argument where a state is to be in codes and can't be.
void check_codes(const ParamGroup& group, const RuleSpec& rule, const StateSpec& state) {
  if (!state.has_codes())
    throw std::invalid_argument(std::string("torch.int8, which ") + state.name + " can't have");
  if (state.exact_with != nullptr && is_switched_on(group, rule, state.exact_with))
    throw std::invalid_argument(std::string("torch.int8, which ") + state.name +
                                " can't have with " + state.exact_with);
}

/// What the group says of its states' dtypes, else what the optimizer does.
StateDtypes state_dtypes_of(PyObject* dict, const StateDtypes& of_optimizer, const RuleSpec& rule) {
  PyObject* value = get_item(dict, state_dtype_key());
  if (value == nullptr) return of_optimizer;
  StateDtypes read = read_state_dtypes(value);
  for (const auto& [name, dtype] : read.by_name) check_is_state(rule, name);
  return read;
}

int master_bits_of(PyObject* dict, int of_optimizer) {
  PyObject* value = get_item(dict, master_bits_key());
  if (value == nullptr) return of_optimizer;
  if (value == Py_None) return 0;
  const long bits = PyLong_CheckExact(value) ? PyLong_AsLong(value) : 0;
  if (bits == 32 || bits == 24) return static_cast<int>(bits);
  PyErr_Clear();
  throw std::invalid_argument("not None, 32 or 24");
}

bool stochastic_rounding_of(PyObject* dict, bool of_optimizer) {
  PyObject* value = get_item(dict, stochastic_rounding_key());
  if (value == nullptr) return of_optimizer;
  if (!PyBool_Check(value)) throw std::invalid_argument("not True or False");
  return value == Py_True;
}

/// Reads the states that are on, and how they and the parameters are kept. `option`: what is being
/// read, for errors. `has_options`: the group may say something of it.
void read_states(ParamGroup& group, PyObject* dict, const RuleSpec& rule,
                 const StepOptions& of_optimizer, bool has_options, const char*& option) {
  group.stochastic_rounding = of_optimizer.stochastic_rounding;
  group.master_bits = of_optimizer.master_bits;
  StateDtypes dtypes = *of_optimizer.state_dtypes;
  if (has_options) {
    option = "stochastic_rounding";
    group.stochastic_rounding = stochastic_rounding_of(dict, group.stochastic_rounding);
    option = "master_bits";
    group.master_bits = master_bits_of(dict, group.master_bits);
    option = "state_dtype";
    dtypes = state_dtypes_of(dict, dtypes, rule);
  }
  option = "state_dtype";
  group.asks_for_compact = group.master_bits != 0 || group.stochastic_rounding;
  for (int i = 0; i < rule.num_states; ++i) {
    const StateSpec& state = rule.states[i];
    if (state.enabled_by != nullptr && !is_switched_on(group, rule, state.enabled_by)) continue;
    group.rows |= RowMask{1} << i;
    if (!state.is_like_param()) continue;
    group.mask |= StateMask{1} << rule.places[i];
    group.dtypes[i] = dtypes.of(state.name);
    if (group.dtypes[i] != kCodes) continue;
    check_codes(group, rule, state);
    group.asks_for_compact = true;
  }
}

void refuse_step_options(PyObject* group, const char* optimizer, Py_ssize_t number) {
  for (size_t i = 0; i < std::size(kStepOptionNames); ++i)
    if (get_item(group, step_option_keys()[i]) != nullptr)
      throw StepOptionInGroup(std::string("fused_optim.") + optimizer + ": group " +
                              std::to_string(number) + " has " + kStepOptionNames[i] +
                              ", which is the whole optimizer's. Nothing was changed.");
}

}  // namespace

ParamGroup read_group(PyObject* group, const RuleRows& rows, const RuleSpec& rule,
                      const StepOptions& of_optimizer, LastKeys& last, const char* optimizer,
                      Py_ssize_t number) {
  ParamGroup read;
  read.params = read_params(group);
  if (PyList_GET_SIZE(read.params.get()) == 0) {
    last.size = 0;  // as the look-ups may run code, too
    refuse_step_options(group, optimizer, number);
    return read;
  }
  GroupItems items(group, rows, last);
  for (int i = 0; i < rule.num_hyperparameters; ++i) {
    const char* name = rule.hyperparameters[i];
    PyObject* value = items.hyperparameter(i, name);
    if (is_device_number(value))
      read.tensors.emplace_back(i, unpack(value));
    else
      read.values[i] = read_usual_number(items, value, rows.hyperparameters[i], name);
  }
  read.maximize = read_number_of(items, items.maximize(), "maximize") != 0;
  const bool has_options = items.may_have_options();
  if (has_options) refuse_step_options(group, optimizer, number);
  const char* option = nullptr;
  try {
    read_states(read, group, rule, of_optimizer, has_options, option);
  } catch (const std::invalid_argument& error) {
    throw std::runtime_error(std::string("fused_optim.") + optimizer + ": group " +
                             std::to_string(number) + ": " + option + " is " + error.what() +
                             ". Nothing was changed.");
  }
  return read;
}

double value_of(const ParamGroup& group, const RuleSpec& rule, const char* hyperparameter) {
  return value_at(group, hyperparameter_index(rule, hyperparameter));
}

HyperparameterRow row_on(const ParamGroup& group, const RuleSpec& rule, Device device,
                         std::vector<at::Tensor>& owned) {
  HyperparameterRow row{};
  for (int i = 0; i < rule.num_hyperparameters; ++i) {
    const at::Tensor* tensor = tensor_of(group, i);
    if (device.kind == DeviceKind::CPU || tensor == nullptr) {
      row.values[i] = value_at(group, i);
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
