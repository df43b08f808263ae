#include "gather/states.h"

#include "base/errors.h"
#include "gather/one_element_states.h"
#include "gather/python_dict.h"
#include "gather/python_tensor.h"
#include "storage/one_element.h"
#include "tensors/layout.h"
#include "tensors/new_tensors.h"

namespace fused_optim {
namespace {

/// Compares keys without a lookup, which could run the `__eq__` of one.
bool has_item(PyObject* state, PyObject* name) {
  PyObject *key, *value;
  for (Py_ssize_t position = 0; PyDict_Next(state, &position, &key, &value);)
    if (key == name || (PyUnicode_CheckExact(key) && PyUnicode_Compare(key, name) == 0))
      return true;
  return false;
}

/// Whether any parameter has a state of this name.
bool has_any(PyObject* states, PyObject* name) {
  PyObject *param, *state;
  for (Py_ssize_t position = 0; PyDict_Next(states, &position, &param, &state);)
    if (PyDict_Check(state) && has_item(state, name)) return true;
  return false;
}

/// The dtype that a state is to have, complex where its parameter is. Throws where there is none.
at::ScalarType dtype_for(const Where& where, const c10::TensorImpl& param, at::ScalarType real,
                         const char* name) {
  if (!is_complex(param)) return real;
  if (real == at::kFloat) return at::kComplexFloat;
  where.fail(name, std::string("can't have dtype ") + c10::toString(real) +
                       ", as its parameter is complex");
}

/// The current group's value of a hyperparameter, read on the host wherever it is.
double value_named(const RuleSpec& rule, const ParamGroup& group, const char* hyperparameter) {
  return value_of(group, hyperparameter_index(rule, hyperparameter));
}

double first_value(const RuleSpec& rule, const ParamGroup& group, const StateSpec& state) {
  return state.begins_as == nullptr ? state.begins_at : value_named(rule, group, state.begins_as);
}

}  // namespace

void StateGatherer::add(TensorEntry& entry, const FoundParam& found, const ParamGroup& group,
                        RowMask are_on) {
  // torch creates all state at once where it keeps a step, else each buffer when it's missing.
  const bool all_new = found.state == nullptr || PyDict_GET_SIZE(found.state) == 0;
  bool is_first = false;
  for (int row = 0; row < rows_.average(); ++row) {
    if (!((are_on >> row) & 1u)) continue;
    switch (rows_.rows[row].kind) {
      case RowKind::Step:
        add_step(entry, found, row, all_new);
        break;
      case RowKind::OneElement:
        add_one_element(entry, found, group, row, all_new);
        break;
      case RowKind::LikeParam:
        is_first |= add_like_param(entry, found, group, row, all_new);
        break;
      case RowKind::Average:
        break;  // comes last
    }
  }
  if (!rule_.has_step) count_steps_by_state(entry, is_first);
  if ((are_on >> rows_.average()) & 1u) add_average(entry, found, rows_.average());
}

void StateGatherer::count_steps_by_state(TensorEntry& entry, bool is_first) {
  entry.step = is_first ? 1 : 2;
  if (!is_first || rule_.first_step_differs_with == nullptr) return;
  // A first step that the kernel skips unknown to the host would leave a state of zeros, which the
  // next step takes for a second step's.
  const HyperparameterRow& row = gathered_.table.rows[entry.row];
  const int index = hyperparameter_index(rule_, rule_.first_step_differs_with);
  if (row.values[index] != 0 || row.addresses[index] != nullptr)
    gathered_.let_host_decide(HostDecides::ForFirstStep);
}

OneElementState& StateGatherer::place_of(const StateRow& row) {
  const size_t first = gathered_.table.entries.size() * gathered_.table.num_one_element;
  return gathered_.table.one_element_states[first + row.place];
}

void StateGatherer::add_step(TensorEntry& entry, const FoundParam& found, int row, bool all_new) {
  const Where& where = builder_.where;
  const at::Tensor* step = all_new ? nullptr : &existing_step(where, found.values[row]);
  if (step == nullptr || !step_fits(*step, entry.device)) {
    if (step != nullptr) check_storage(where, *step->unsafeGetTensorImpl(), "step");
    at::Tensor& created = builder_.new_state(entry.device, found, "step").add(rows_.keys[row]);
    created = step == nullptr ? new_step(entry.device) : moved_step(where, *step, entry.device);
    step = &created;
  }
  OneElementState& state = place_of(rows_.rows[row]);
  state.data = builder_.add_scalar(*step, "step");
  state.format = format_of(*step->unsafeGetTensorImpl());
  state.is_on_device = entry.device.kind == DeviceKind::CUDA;
  if (state.is_on_device) {
    entry.device_step = static_cast<float*>(state.data);
    return;
  }
  state.before = load_scalar(state.data, state.format);
  check_count(where, state.before);
}

void StateGatherer::add_one_element(TensorEntry& entry, const FoundParam& found,
                                    const ParamGroup& group, int row, bool all_new) {
  const Where& where = builder_.where;
  const StateSpec& spec = rows_.rows[row].spec;
  const at::Tensor* scalar =
      all_new ? nullptr : &existing_scalar_state(where, found.values[row], spec.name);
  if (scalar == nullptr || !scalar_fits(*scalar, entry.device)) {
    if (scalar != nullptr) check_storage(where, *scalar->unsafeGetTensorImpl(), spec.name);
    at::Tensor& created = builder_.new_state(entry.device, found, spec.name).add(rows_.keys[row]);
    created = scalar == nullptr ? new_scalar(entry.device, first_value(rule_, group, spec))
                                : moved_scalar(*scalar, entry.device);
    scalar = &created;
  }
  OneElementState& state = place_of(rows_.rows[row]);
  state.format = format_of(*scalar->unsafeGetTensorImpl());
  check_one_format(rows_.rows[row]);
  state.is_on_device = entry.device.kind == DeviceKind::CUDA;
  state.data = builder_.add_scalar(*scalar, spec.name);
  if (!state.is_on_device) state.before = load_scalar(state.data, state.format);
}

/// Those beside the step are advanced together, in one dtype.
void StateGatherer::check_one_format(const StateRow& row) const {
  const int first = rule_.has_step ? 1 : 0;
  if (row.place == first) return;
  const OneElementState* states = gathered_.table.one_element_states.data() +
                                  gathered_.table.entries.size() * gathered_.table.num_one_element;
  if (states[row.place].format != states[first].format)
    throw NotFused(std::string(row.spec.name) +
                   " is of another dtype than the state's other scalars");
}

const at::Tensor& StateGatherer::local_state(const FoundParam& found, int row) {
  const Where& where = builder_.where;
  PyObject* value = found.values[row];
  const char* name = rows_.rows[row].spec.name;
  if (value == nullptr || is_plain_type(value) || !sharded_.is_dtensor(value)) {
    if (found.spec != nullptr && value != nullptr && is_plain_type(value))
      where.fail(name, "is no DTensor, the parameter is placed as " + placement_text(found.spec));
    return state_tensor(where, value, name);
  }
  if (found.spec == nullptr) where.fail(name, "is a DTensor, the parameter is none");
  PyObject* spec = sharded_.spec_of(value);
  if (!sharded_.are_placed_alike(found.spec, spec))
    where.fail(name, "is placed as " + placement_text(spec) + ", the parameter as " +
                         placement_text(found.spec));
  c10::TensorImpl* state = unpack(value).unsafeGetTensorImpl();
  const c10::TensorImpl& param = *unpack(found.object).unsafeGetTensorImpl();
  if (state->sizes() != param.sizes())
    where.fail(name, "has shape " + shape_of(*state) + ", the parameter " + shape_of(param));
  const at::Tensor& local = unpack(sharded_.local_of(value));
  gathered_.wrappers.push_back({value, local.unsafeGetTensorImpl()});
  return local;
}

const at::Tensor& StateGatherer::existing_like_param(Device device, const FoundParam& found,
                                                     int row, std::optional<at::ScalarType> dtype) {
  const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
  const char* name = rows_.rows[row].spec.name;
  const bool is_plain = found.spec == nullptr && is_plain_type(found.values[row]);
  const at::Tensor& state = is_plain ? unpack(found.values[row]) : local_state(found, row);
  check_operand(builder_.where, param, *state.unsafeGetTensorImpl(), name);
  if (!dtype) return state;
  const at::ScalarType wanted = dtype_for(builder_.where, param, *dtype, name);
  if (state.scalar_type() == wanted) return state;
  builder_.locate(*state.unsafeGetTensorImpl(), name);
  at::Tensor& converted = builder_.new_state(device, found, name).add_like_param(rows_.keys[row]);
  converted = state.detach().to(wanted);
  return converted;
}

bool StateGatherer::add_like_param(TensorEntry& entry, const FoundParam& found,
                                   const ParamGroup& group, int row, bool all_new) {
  const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
  const auto& [spec, kind, operand] = rows_.rows[row];
  const std::optional<at::ScalarType>& dtype = group.dtypes[row];
  if (found.values[row] != nullptr && found.values[row] != Py_None) {
    const at::Tensor& state = existing_like_param(entry.device, found, row, dtype);
    builder_.add_operand(entry, param, *state.unsafeGetTensorImpl(), operand, spec.name);
    return false;
  }
  if (!all_new && rule_.has_step) builder_.where.fail(spec.name, "is missing from the state");
  const double value = first_value(rule_, group, spec);
  // Of a complex one, both its parts.
  const at::Scalar scalar =
      is_complex(param) ? at::Scalar(c10::complex<double>(value, value)) : at::Scalar(value);
  at::Tensor& state =
      builder_.new_state(entry.device, found, spec.name).add_like_param(rows_.keys[row]);
  const at::ScalarType own = found.tensor->scalar_type();
  state = full_like(found.tensor->detach(), scalar,
                    dtype ? dtype_for(builder_.where, param, *dtype, spec.name) : own);
  check_operand(builder_.where, param, *state.unsafeGetTensorImpl(), spec.name);
  builder_.add_operand(entry, param, *state.unsafeGetTensorImpl(), operand, spec.name);
  return true;
}

/// The optimizer's first averages become the parameters after this step; one that joins them begins
/// as its parameter before it.
void StateGatherer::add_average(TensorEntry& entry, const FoundParam& found, int row) {
  const c10::TensorImpl& impl = *found.tensor->unsafeGetTensorImpl();
  if (found.values[row] != nullptr) {
    const at::Tensor& average = existing_like_param(entry.device, found, row, ema_dtype_);
    builder_.add_operand(entry, impl, *average.unsafeGetTensorImpl(), kAverage, kAverageName);
    return;
  }
  const at::Tensor param = found.tensor->detach();
  at::Tensor& average =
      builder_.new_state(entry.device, found, kAverageName).add_like_param(rows_.keys[row]);
  // Whatever keeps the step from its end, it is the average of something.
  average =
      empty_like(param, ema_dtype_ ? dtype_for(builder_.where, impl, *ema_dtype_, kAverageName)
                                   : param.scalar_type());
  average.copy_(param);
  if (gathered_.first_averages.empty() && has_any(states_, rows_.keys[row])) {
    builder_.add_operand(entry, impl, *average.unsafeGetTensorImpl(), kAverage, kAverageName);
  } else {
    gathered_.first_averages.push_back({average, param});
    gathered_.let_host_decide(HostDecides::ForFirstAverages);
  }
}

void StateGatherer::add_average_alone(const FoundParam& found) {
  const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
  check_param(param);
  const at::Tensor& average =
      existing_like_param(device_of(param), found, rows_.average(), ema_dtype_);
  builder_.locate(param, "param");
  builder_.locate(*average.unsafeGetTensorImpl(), kAverageName);
  builder_.add_beside_table(param, false);
  builder_.add_beside_table(*average.unsafeGetTensorImpl(), true);
  // Aliases, so that `.data = ...` on either changes nothing for this step.
  gathered_.averages_alone.push_back({average.detach(), found.tensor->detach()});
  gathered_.beside_table.push_back(const_cast<c10::TensorImpl*>(&param));
  gathered_.beside_table.push_back(average.unsafeGetTensorImpl());
  gathered_.let_host_decide(HostDecides::ForAverageAlone);
}

}  // namespace fused_optim
