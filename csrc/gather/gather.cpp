#include "gather/gather.h"

#include <c10/core/GradMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include "base/errors.h"
#include "gather/entry_builder.h"
#include "gather/one_element_states.h"
#include "gather/options.h"
#include "gather/python_dict.h"
#include "gather/python_tensor.h"
#include "rules/one_element_states.h"
#include "rules/registry.h"
#include "tensors/checks.h"
#include "tensors/layout.h"
#include "tensors/new_tensors.h"

namespace fused_optim {
namespace {

class Gatherer {
 public:
  Gatherer(int rule, const char* name, std::vector<ParamGroup> groups, PyObject* state, Amp& amp,
           const StepOptions& options)
      : spec_(kRules[rule]),
        keys_(keys_of(rule)),
        state_(state),
        amp_(amp),
        options_(options),
        num_params_(count_params(groups)),
        builder_(name,
                 num_params_ * (kFirstState + 4 + spec_.num_scalar_states + spec_.num_states)),
        result_(builder_.result),
        where_(builder_.where) {
    result_.groups = std::move(groups);
    result_.table.rule = rule;
    result_.table.zero_grads = options.zero_grads;
    if (options.ema_decay) result_.table.ema_weight = 1.0 - *options.ema_decay;
  }

  Gathered run() {
    result_.table.entries.reserve(num_params_);
    result_.written.reserve(num_params_ * (3 + spec_.num_states + spec_.num_scalar_states));
    result_.read.reserve(num_params_);
    if (spec_.has_step) result_.steps.reserve(num_params_);
    if (spec_.num_scalar_states > 0) result_.table.scalar_states.reserve(num_params_);
    check_keys(state_);
    for (ParamGroup& group : result_.groups) {
      add_group(group);
      ++where_.group;
    }
    if (result_.host_decides) amp_.read_on_host();
    amp_.apply(result_.table, result_.owned);
    if (builder_.has_overlap()) throw NotFused("tensors of this step overlap in memory");
    return std::move(result_);
  }

 private:
  static int64_t count_params(std::vector<ParamGroup>& groups) {
    int64_t count = 0;
    for (ParamGroup& group : groups) count += PyList_GET_SIZE(group.params.get());
    return count;
  }

  void add_group(ParamGroup& group) {
    PyObject* params = group.params.get();
    group_ = &group;
    group_rows_.clear();
    mask_ = group.mask;
    const Py_ssize_t size = PyList_GET_SIZE(params);
    const Lookup lookup{spec_, keys_, state_, options_.ema_decay.has_value()};
    for (Py_ssize_t first = 0; first < size; first += kBatch) {
      find_batch(lookup, mask_, PySequence_Fast_ITEMS(params) + first, first,
                 std::min(kBatch, size - first), found_);
      for (const FoundParam& found : found_) {
        where_.index = found.index;
        builder_.begin(*found.tensor->unsafeGetTensorImpl());
        if (found.grad != nullptr)
          add_param(found);
        else
          add_average_alone(builder_, found);
      }
    }
  }

  /// The current group's row for this device: each of them reads device tensors of its own.
  int32_t row_for(Device device) {
    for (const auto& [of, row] : group_rows_)
      if (of == device) return row;
    std::vector<HyperparameterRow>& rows = result_.table.rows;
    rows.push_back(row_on(*group_, spec_, device, result_.owned));
    group_rows_.emplace_back(device, static_cast<int32_t>(rows.size()) - 1);
    return group_rows_.back().second;
  }

  void add_param(const FoundParam& found) {
    const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
    const c10::TensorImpl& grad = *found.grad;
    check_param(param);
    TensorEntry entry{};
    entry.dtype = dtype_of(param);
    entry.device = device_of(param);
    if (entry.device.kind == DeviceKind::CPU) result_.host_decides = true;
    entry.mask = static_cast<uint8_t>(mask_);
    entry.row = row_for(entry.device);
    entry.strided = -1;
    entry.numel = real_numel(param);
    builder_.add_operand(entry, param, param, kParam, "param");
    if (grad.is_sparse()) throw NotFusedAsExpected("a gradient is sparse");
    check_operand(where_, param, grad, kGradName);
    add_grad(builder_, entry, found, options_);
    add_state(entry, found);
    if (options_.ema_decay) add_average(builder_, entry, found, state_);
    result_.table.entries.push_back(entry);
  }

  void add_state(TensorEntry& entry, const FoundParam& found) {
    const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
    // torch creates all state at once where it keeps a step, else each buffer when it's missing.
    const bool all_new = found.state == nullptr || PyDict_GET_SIZE(found.state) == 0;
    const size_t num_new = result_.new_states.size();
    if (spec_.has_step) add_step(entry, found, all_new);
    if (spec_.num_scalar_states > 0) add_scalar_states(entry, found, all_new);
    for (int i = 0; i < spec_.num_states; ++i) {
      if (!has_state(mask_, i)) continue;
      const char* name = spec_.states[i].name;
      if (found.values[i] != nullptr && found.values[i] != Py_None) {
        if (spec_.begins_in_constructor) check_dtype_of_constructor(found, found.values[i]);
        builder_.add_state(entry, found, found.values[i], kFirstState + i, name);
      } else if (all_new || !spec_.has_step) {
        at::Tensor& state = builder_.new_state(entry, found, name).add(keys_.states[i]);
        state = full_like(found.tensor->detach(), first_value(param, spec_.states[i]));
        check_operand(where_, param, *state.unsafeGetTensorImpl(), name);
        builder_.add_operand(entry, param, *state.unsafeGetTensorImpl(), kFirstState + i, name);
      } else {
        where_.fail(name, "is missing from the state");
      }
    }
    if (spec_.has_step) return;
    const bool is_first = result_.new_states.size() > num_new;
    entry.step = is_first ? 1 : 2;
    if (is_first && first_step_differs(entry)) result_.host_decides = true;
  }

  /// torch steps parameters that were float32 when the optimizer made their state. No kernel does.
  static void check_dtype_of_constructor(const FoundParam& found, PyObject* state) {
    if (is_plain_type(state) && unpack(state).scalar_type() == at::kFloat &&
        found.tensor->scalar_type() != at::kFloat)
      throw NotFused("the state is float32, as its parameter was when the optimizer was made");
  }

  /// The current group's value of a hyperparameter, read on the host wherever it is.
  double value_named(const char* hyperparameter) const {
    return value_of(*group_, hyperparameter_index(spec_, hyperparameter));
  }

  /// What every element of a new state begins as; of a complex one, both its parts.
  at::Scalar first_value(const c10::TensorImpl& param, const StateSpec& state) const {
    const double value = state.begins_as == nullptr ? 0.0 : value_named(state.begins_as);
    return is_complex(param) ? at::Scalar(c10::complex<double>(value, value)) : at::Scalar(value);
  }

  /// Whether a first step that the kernel skips unknown to the host would leave a state of zeros
  /// that the next step takes for a second step's. Then the host has to know.
  bool first_step_differs(const TensorEntry& entry) const {
    if (spec_.first_step_differs_with == nullptr) return false;
    const HyperparameterRow& row = result_.table.rows[entry.row];
    const int index = hyperparameter_index(spec_, spec_.first_step_differs_with);
    return row.values[index] != 0 || row.addresses[index] != nullptr;
  }

  void add_step(TensorEntry& entry, const FoundParam& found, bool all_new) {
    const at::Tensor* step = all_new ? nullptr : &existing_step(where_, found.step);
    if (step == nullptr || !step_fits(*step, entry.device)) {
      if (step != nullptr) check_storage(where_, *step->unsafeGetTensorImpl(), "step");
      at::Tensor& created = builder_.new_state(entry, found, "step").add(step_key());
      created = step == nullptr ? new_step(entry.device) : moved_step(where_, *step, entry.device);
      step = &created;
    }
    void* data = builder_.add_scalar(*step, "step");
    if (entry.device.kind == DeviceKind::CUDA) {
      entry.device_step = static_cast<float*>(data);
      return;
    }
    const DType dtype = dtype_of(*step->unsafeGetTensorImpl());
    check_count(where_, load_scalar(data, dtype));
    result_.steps.push_back({data, dtype, static_cast<int64_t>(result_.table.entries.size())});
  }

  void add_scalar_states(TensorEntry& entry, const FoundParam& found, bool all_new) {
    ScalarStates& states = result_.table.scalar_states.emplace_back();
    states.on_device = entry.device.kind == DeviceKind::CUDA;
    for (int i = 0; i < spec_.num_scalar_states; ++i) {
      const auto& [name, begins_at, begins_as] = spec_.scalar_states[i];
      const at::Tensor* scalar =
          all_new ? nullptr : &existing_scalar_state(where_, found.scalar_states[i], name);
      if (scalar == nullptr || !scalar_fits(*scalar, entry.device)) {
        if (scalar != nullptr) check_storage(where_, *scalar->unsafeGetTensorImpl(), name);
        at::Tensor& created = builder_.new_state(entry, found, name).add(keys_.scalar_states[i]);
        const double first = begins_as == nullptr ? begins_at : value_named(begins_as);
        created = scalar == nullptr ? new_scalar(entry.device, first)
                                    : moved_scalar(*scalar, entry.device);
        scalar = &created;
      }
      const DType dtype = dtype_of(*scalar->unsafeGetTensorImpl());
      if (i > 0 && dtype != states.dtype)
        throw NotFused(std::string(name) + " is of another dtype than the state's other scalars");
      states.dtype = dtype;
      states.data[i] = builder_.add_scalar(*scalar, name);
      if (!states.on_device) states.values.before[i] = load_scalar(states.data[i], dtype);
    }
  }

  const RuleSpec& spec_;
  const RuleKeys& keys_;
  PyObject* state_;
  Amp& amp_;
  const StepOptions& options_;
  const int64_t num_params_;
  EntryBuilder builder_;
  Gathered& result_;
  Where& where_;
  std::vector<FoundParam> found_;
  // Of the current group:
  const ParamGroup* group_ = nullptr;
  StateMask mask_ = 0;
  std::vector<std::pair<Device, int32_t>> group_rows_;
};

std::vector<ParamGroup> read_groups(int rule, PyObject* groups, PyObject* state) {
  if (!PyList_CheckExact(groups) || !is_plain_dict(state))
    throw NotFused("param_groups is no plain list, or state no plain dict");
  std::vector<ParamGroup> read;
  read.reserve(PyList_GET_SIZE(groups));
  // What a group's values run may change the list of groups.
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); ++i) {
    THPObjectPtr group = owned(PyList_GET_ITEM(groups, i));
    read.push_back(read_group(group, keys_of(rule).hyperparameters, kRules[rule]));
  }
  return read;
}

}  // namespace

Gathered gather(int rule, const char* name, PyObject* param_groups, PyObject* state, Amp& amp,
                const StepOptions& options) {
  const at::NoGradGuard no_grad;
  // Such a mode (FakeTensorMode, tracers, counters) means to see the operations.
  if (c10::impl::TorchDispatchModeTLS::any_modes_set())
    throw NotFusedAsExpected("a TorchDispatchMode is active");
  return Gatherer(rule, name, read_groups(rule, param_groups, state), state, amp, options).run();
}

}  // namespace fused_optim
