#include "gather/states.h"

#include "base/errors.h"
#include "gather/local_state.h"
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

double first_value(const RuleSpec& rule, const ParamGroup& group, const StateSpec& state) {
  return state.begins_as == nullptr ? state.begins_at : value_of(group, rule, state.begins_as);
}

}  // namespace

void StateGatherer::add(TensorEntry& entry, const AtHand& param, RowMask are_on) {
  const FoundParam& found = param.found;
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
        add_one_element(entry, found, param.group, row, all_new);
        break;
      case RowKind::LikeParam:
        is_first |= add_like_param(entry, param, row, all_new);
        break;
      default:
        break;  // come last
    }
  }
  if (!rule_.has_step) count_steps_by_state(entry, is_first);
  const at::Tensor* remainder =
      compact_.has_master(param) ? &compact_.remainder_of(entry.device, param) : nullptr;
  if ((are_on >> rows_.average()) & 1u) add_average(entry, param, remainder);
  if ((are_on >> rows_.remainder()) & 1u) compact_.finish(entry, param, remainder);
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

inline const at::Tensor& StateGatherer::existing(const FoundParam& found, int row) {
  PyObject* value = found.values[row];
  if (found.spec == nullptr && is_plain_type(value)) return unpack(value);
  return local_state(builder_.where, sharded_, gathered_, found, value, rows_.rows[row].spec.name);
}

const at::Tensor& StateGatherer::replaced(Device device, const FoundParam& found, int row,
                                          const at::Tensor& by) {
  at::Tensor& created =
      builder_.new_state(device, found, rows_.rows[row].spec.name).add_like_param(rows_.keys[row]);
  created = by;
  return created;
}

const at::Tensor& StateGatherer::in_dtype(Device device, const FoundParam& found, int row,
                                          const at::Tensor& state,
                                          std::optional<at::ScalarType> dtype) {
  const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
  const char* name = rows_.rows[row].spec.name;
  check_operand(builder_.where, param, *state.unsafeGetTensorImpl(), name);
  if (!dtype) return state;
  const at::ScalarType wanted = dtype_for(builder_.where, param, *dtype, name);
  if (state.scalar_type() == wanted) return state;
  builder_.locate(*state.unsafeGetTensorImpl(), name);
  return replaced(device, found, row, state.detach().to(wanted));
}

void StateGatherer::add_existing(TensorEntry& entry, const AtHand& param, int row) {
  const auto& [name, kind, operand] = rows_.rows[row];
  const FoundParam& found = param.found;
  const at::Tensor* state = &existing(found, row);
  if (!compact_.may_change(param, row)) {
    const c10::TensorImpl& as_it_is = *state->unsafeGetTensorImpl();
    check_operand(builder_.where, param.impl(), as_it_is, name.name);
    return builder_.add_operand(entry, param.impl(), as_it_is, operand, name.name);
  }
  const std::optional<at::ScalarType> dtype = compact_.dtype_of(param, row);
  const at::Tensor begun = compact_.as_begun(param, *state, dtype, row);
  if (compact_.is_coded(*state)) {
    check_place(builder_.where, param.impl(), *state->unsafeGetTensorImpl(), name.name);
    if (!dtype || *dtype == kCodes) return compact_.add_coded(entry, param, *state, row);
    const at::Tensor values = compact_.values_of(param, *state, row);
    state = &replaced(entry.device, found, row, values.to(*dtype));
  } else if (dtype == kCodes) {
    check_operand(builder_.where, param.impl(), *state->unsafeGetTensorImpl(), name.name);
    builder_.locate(*state->unsafeGetTensorImpl(), name.name);
    return compact_.add_newly_coded(entry, param, begun.defined() ? &begun : state, row);
  } else if (begun.defined()) {
    state = &replaced(entry.device, found, row, begun);
  } else {
    state = &in_dtype(entry.device, found, row, *state, dtype);
  }
  builder_.add_operand(entry, param.impl(), *state->unsafeGetTensorImpl(), operand, name.name);
}

bool StateGatherer::add_like_param(TensorEntry& entry, const AtHand& param, int row, bool all_new) {
  const c10::TensorImpl& impl = param.impl();
  const StateSpec& spec = rows_.rows[row].spec;
  PyObject* value = param.found.values[row];
  if (value != nullptr && value != Py_None) {
    add_existing(entry, param, row);
    return false;
  }
  if (!all_new && rule_.has_step) builder_.where.fail(spec.name, "is missing from the state");
  const double first = first_value(rule_, param.group, spec);
  const std::optional<at::ScalarType> dtype = compact_.dtype_of(param, row);
  const at::Tensor tensor = param.tensor().detach();
  if (dtype == kCodes) {
    const at::Tensor values = first == 0 ? at::Tensor() : full_like(tensor, first, at::kFloat);
    compact_.add_newly_coded(entry, param, first == 0 ? nullptr : &values, row);
    return true;
  }
  // Of a complex one, both its parts.
  const at::Scalar scalar =
      is_complex(impl) ? at::Scalar(c10::complex<double>(first, first)) : at::Scalar(first);
  const at::Tensor& state = replaced(
      entry.device, param.found, row,
      full_like(tensor, scalar,
                dtype ? dtype_for(builder_.where, impl, *dtype, spec.name) : tensor.scalar_type()));
  check_operand(builder_.where, impl, *state.unsafeGetTensorImpl(), spec.name);
  builder_.add_operand(entry, impl, *state.unsafeGetTensorImpl(), rows_.rows[row].place, spec.name);
  return true;
}

/// The optimizer's first averages become the parameters after this step; one that joins them begins
/// as its parameter before it.
void StateGatherer::add_average(TensorEntry& entry, const AtHand& at_hand,
                                const at::Tensor* remainder) {
  const c10::TensorImpl& impl = at_hand.impl();
  const FoundParam& found = at_hand.found;
  const int row = rows_.average();
  if (found.values[row] != nullptr) {
    const at::Tensor& average =
        in_dtype(entry.device, found, row, existing(found, row), ema_dtype_);
    builder_.add_operand(entry, impl, *average.unsafeGetTensorImpl(), kAverage, kAverageName);
    return;
  }
  const at::Tensor param = found.tensor->detach();
  // Beside a master an average is a float32 run's.
  const auto dtype = remainder != nullptr && !ema_dtype_ ? at::kFloat : ema_dtype_;
  // Whatever keeps the step from its end, it is the average of something.
  const at::Tensor& average =
      replaced(entry.device, found, row,
               empty_like(param, dtype ? dtype_for(builder_.where, impl, *dtype, kAverageName)
                                       : param.scalar_type()));
  const Averaged begins{average, param, remainder == nullptr ? at::Tensor() : *remainder};
  average.copy_(begins.values());
  if (gathered_.first_averages.empty() && has_any(states_, rows_.keys[row])) {
    builder_.add_operand(entry, impl, *average.unsafeGetTensorImpl(), kAverage, kAverageName);
  } else {
    gathered_.first_averages.push_back(begins);
    gathered_.let_host_decide(HostDecides::ForFirstAverages);
  }
}

void StateGatherer::add_average_alone(const AtHand& at_hand) {
  const FoundParam& found = at_hand.found;
  const c10::TensorImpl& param = at_hand.impl();
  check_param(param);
  const at::Tensor& average = in_dtype(device_of(param), found, rows_.average(),
                                       existing(found, rows_.average()), ema_dtype_);
  builder_.locate(param, "param");
  builder_.locate(*average.unsafeGetTensorImpl(), kAverageName);
  builder_.add_beside_table(param, false);
  builder_.add_beside_table(*average.unsafeGetTensorImpl(), true);
  // Aliases, so that `.data = ...` on either changes nothing for this step.
  gathered_.averages_alone.push_back({average.detach(), found.tensor->detach(), {}});
  if (compact_.has_master(at_hand)) {
    const at::Tensor& remainder = compact_.remainder_of(device_of(param), at_hand);
    builder_.locate(*remainder.unsafeGetTensorImpl(), kRemainderName);
    builder_.add_beside_table(*remainder.unsafeGetTensorImpl(), false);
    gathered_.averages_alone.back().remainder = remainder.detach();
    gathered_.beside_table.push_back(remainder.unsafeGetTensorImpl());
  }
  gathered_.beside_table.push_back(const_cast<c10::TensorImpl*>(&param));
  gathered_.beside_table.push_back(average.unsafeGetTensorImpl());
  gathered_.let_host_decide(HostDecides::ForAverageAlone);
}

}  // namespace fused_optim
