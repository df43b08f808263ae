#include "gather.h"

#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/COW.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>

#include "layout.h"
#include "lookup.h"
#include "overlap.h"
#include "python_dict.h"
#include "rules/registry.h"

namespace fused_optim {
namespace {

constexpr const char* kGradName = "grad";

DType dtype_of(const c10::TensorImpl& tensor) {
  switch (c10::toRealValueType(tensor.dtype().toScalarType())) {
    case c10::ScalarType::Float:
      return DType::Float32;
    case c10::ScalarType::Double:
      return DType::Float64;
    case c10::ScalarType::BFloat16:
      return DType::BFloat16;
    case c10::ScalarType::Half:
      return DType::Float16;
    default:
      throw NotFused(std::string("no kernel takes dtype ") +
                     c10::toString(tensor.dtype().toScalarType()));
  }
}

std::string shape_of(const c10::TensorImpl& tensor) {
  std::string text = "[";
  for (int64_t size : tensor.sizes()) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

/// Tensors that are what they seem: strided memory of their own, no subclass, no lazy conjugate,
/// no transform's wrapper. Anything else shows in the dispatch keys.
bool is_plain(const c10::TensorImpl& tensor) {
  constexpr c10::DispatchKeySet dense_cpu(c10::DispatchKey::CPU);
  constexpr c10::DispatchKeySet inplace(c10::DispatchKey::ADInplaceOrView);
  constexpr c10::DispatchKeySet ordinary = inplace |
                                           c10::DispatchKeySet(c10::DispatchKey::AutogradCPU) |
                                           c10::DispatchKeySet(c10::DispatchKey::AutocastCPU);
  const c10::DispatchKeySet keys = tensor.key_set();
  // Inference tensors lack ADInplaceOrView; they may be written in inference mode alone.
  return keys - ordinary == dense_cpu &&
         (keys.has_all(inplace) || c10::InferenceMode::is_enabled());
}

class Gatherer {
 public:
  Gatherer(int rule, PyObject* param_groups, PyObject* state, double grad_multiplier)
      : spec_(kRules[rule]),
        keys_(keys_of(rule)),
        groups_(param_groups),
        state_(state),
        grad_multiplier_(grad_multiplier),
        overlap_(count_params() * (kFirstState + spec_.num_states)) {
    result_.table.rule = rule;
  }

  Gathered run() {
    const size_t params = count_params();
    result_.table.entries.reserve(params);
    result_.written.reserve(params * (2 + spec_.num_states));
    result_.read.reserve(params);
    if (spec_.has_step) result_.steps.reserve(params);
    for (group_ = 0; group_ < PyList_GET_SIZE(groups_); ++group_)
      add_group(PyList_GET_ITEM(groups_, group_));
    if (overlap_.found(result_.table)) throw NotFused("tensors of this step overlap in memory");
    return std::move(result_);
  }

 private:
  PyObject* params_of(PyObject* group) const {
    PyObject* params = PyDict_Check(group) ? get_item(group, params_key()) : nullptr;
    if (params == nullptr || !PyList_Check(params))
      throw NotFused("a parameter group is no dict with a list of params");
    return params;
  }

  int64_t count_params() const {
    if (!PyList_Check(groups_) || !PyDict_Check(state_))
      throw NotFused("param_groups is no list, or state no dict");
    int64_t count = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups_); ++i)
      count += PyList_GET_SIZE(params_of(PyList_GET_ITEM(groups_, i)));
    return count;
  }

  void add_group(PyObject* group) {
    PyObject* params = params_of(group);
    if (PyList_GET_SIZE(params) == 0) return;
    result_.table.rows.push_back(read_row(group, keys_.hyperparameters, spec_, grad_multiplier_));
    variant_ = variant_of(result_.table.rows.back());
    const Py_ssize_t size = PyList_GET_SIZE(params);
    for (Py_ssize_t first = 0; first < size; first += kBatch) {
      find_batch(spec_, keys_, state_, variant_, PySequence_Fast_ITEMS(params) + first, first,
                 std::min(kBatch, size - first), found_);
      for (const FoundParam& found : found_) {
        index_ = found.index;
        add_param(found);
      }
    }
  }

  Variant variant_of(const HyperparameterRow& row) const {
    Variant variant = 0;
    for (int i = 0; i < spec_.num_states; ++i) {
      const char* enabled_by = spec_.states[i].enabled_by;
      bool enabled = enabled_by == nullptr;
      for (int h = 0; h < spec_.num_hyperparameters && !enabled; ++h)
        enabled = spec_.hyperparameters[h] == std::string_view(enabled_by) && row.values[h] != 0;
      if (enabled) variant |= 1u << i;
    }
    return variant;
  }

  void add_param(const FoundParam& found) {
    const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
    const c10::TensorImpl& grad = *found.grad;
    check_param(param);
    TensorEntry entry{};
    entry.dtype = dtype_of(param);
    entry.device = {DeviceKind::CPU, 0};
    entry.variant = static_cast<uint8_t>(variant_);
    entry.row = static_cast<int32_t>(result_.table.rows.size()) - 1;
    entry.strided = -1;
    entry.numel = param.numel() * (is_complex(param) ? 2 : 1);
    add_operand(entry, param, param, kParam, "param");
    if (grad.is_sparse()) throw NotFused("a gradient is sparse");
    check_operand(param, grad, kGradName);
    add_operand(entry, param, grad, kGrad, kGradName);
    add_state(entry, found);
    result_.table.entries.push_back(entry);
  }

  void check_param(const c10::TensorImpl& param) const {
    if (!is_plain(param)) {
      if (param.is_meta()) fail("param", "is on the meta device: it has no data to step");
      if (!param.is_cpu()) throw NotFused("no kernel for device " + param.device().str());
      throw NotFused("a parameter is no plain strided tensor");
    }
    if (!param.is_non_overlapping_and_dense()) throw NotFused("a parameter is not dense in memory");
  }

  /// A gradient or state must match its parameter in all but strides.
  void check_operand(const c10::TensorImpl& param, const c10::TensorImpl& tensor,
                     const char* name) const {
    if (tensor.device() != param.device())
      fail(name, "is on " + tensor.device().str() + ", the parameter on " + param.device().str());
    if (tensor.dtype() != param.dtype())
      fail(name, std::string("has dtype ") + c10::toString(tensor.dtype().toScalarType()) +
                     ", the parameter " + c10::toString(param.dtype().toScalarType()));
    if (tensor.sizes() != param.sizes())
      fail(name, "has shape " + shape_of(tensor) + ", the parameter " + shape_of(param));
    if (!is_plain(tensor)) throw NotFused(std::string(name) + " is no plain strided tensor");
    if (name != kGradName && !tensor.is_non_overlapping_and_dense())
      throw NotFused(std::string(name) + " is not dense in memory");
  }

  /// The tensor's first element, all of its elements checked to lie within its storage.
  void* locate(const c10::TensorImpl& tensor, const char* name) {
    const c10::StorageImpl& storage = *tensor.unsafe_storage().unsafeGetStorageImpl();
    const int64_t end = tensor.storage_offset() + span(tensor);
    const auto item = static_cast<int64_t>(tensor.dtype().itemsize());
    if (static_cast<uint64_t>(end * item) > storage.nbytes())
      fail(name, "reaches beyond its storage");
    if (name != kGradName && c10::impl::cow::is_cow_data_ptr(storage.data_ptr()))
      throw NotFused(std::string(name) + " shares its memory until it is written");
    if (tensor.numel() == 0) return nullptr;
    overlap_.add(storage.data());
    return static_cast<char*>(const_cast<void*>(storage.data())) + tensor.storage_offset() * item;
  }

  void add_operand(TensorEntry& entry, const c10::TensorImpl& param, const c10::TensorImpl& tensor,
                   int operand, const char* name) {
    entry.operands[operand] = locate(tensor, name);
    (operand == kGrad ? result_.read : result_.written)
        .push_back(const_cast<c10::TensorImpl*>(&tensor));
    if (operand == kParam || same_layout(param, tensor)) return;
    if (entry.strided < 0) {
      entry.strided = static_cast<int32_t>(result_.table.strided.size());
      result_.table.strided.push_back(layout_of(param));
    }
    add_strided(result_.table.strided[entry.strided], param, operand, tensor);
  }

  void add_state(TensorEntry& entry, const FoundParam& found) {
    const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
    // torch creates all state at once where it keeps a step, else each buffer when it's missing.
    const bool all_new = found.state == nullptr || PyDict_GET_SIZE(found.state) == 0;
    const size_t num_new = result_.new_states.size();
    for (int i = 0; i < spec_.num_states; ++i) {
      if (!has_state(variant_, i)) continue;
      const char* name = spec_.states[i].name;
      if (found.values[i] != nullptr && found.values[i] != Py_None) {
        const c10::TensorImpl& state = state_tensor(found.values[i], name);
        check_operand(param, state, name);
        add_operand(entry, param, state, kFirstState + i, name);
      } else if (all_new || !spec_.has_step) {
        NewState& created = new_state(found, num_new);
        created.keys[created.num_states] = keys_.states[i];
        at::Tensor& zeros = created.tensors[created.num_states++];
        zeros = at::zeros_like(found.tensor->detach(), {}, {}, {}, {}, at::MemoryFormat::Preserve);
        check_operand(param, *zeros.unsafeGetTensorImpl(), name);
        add_operand(entry, param, *zeros.unsafeGetTensorImpl(), kFirstState + i, name);
      } else {
        fail(name, "is missing from the state");
      }
    }
    if (!spec_.has_step)
      entry.step = result_.new_states.size() > num_new ? 1 : 2;
    else if (all_new)
      add_new_step(new_state(found, num_new));
    else
      add_step(found.step);
  }

  /// The parameter's entry in the list of new states, made where it has none yet.
  NewState& new_state(const FoundParam& found, size_t num_before) {
    if (result_.new_states.size() == num_before) {
      result_.new_states.emplace_back();
      result_.new_states.back().param = found.object;
      result_.new_states.back().existing = found.state;
    }
    return result_.new_states.back();
  }

  const c10::TensorImpl& state_tensor(PyObject* value, const char* name) const {
    if (!THPVariable_Check(value))
      fail(name, std::string("is no tensor but ") + Py_TYPE(value)->tp_name);
    if (!is_plain_type(value)) throw NotFused(std::string(name) + " is of a tensor subclass");
    return *THPVariable_Unpack(value).unsafeGetTensorImpl();
  }

  void add_new_step(NewState& created) {
    const bool is_double = c10::get_default_dtype_as_scalartype() == c10::ScalarType::Double;
    created.step = at::zeros({}, is_double ? at::kDouble : at::kFloat);
    result_.written.push_back(created.step.unsafeGetTensorImpl());
    result_.steps.push_back({created.step.data_ptr(), is_double ? DType::Float64 : DType::Float32,
                             static_cast<int64_t>(result_.table.entries.size())});
  }

  void add_step(PyObject* value) {
    if (value == nullptr) fail("step", "is missing from the state");
    if (!THPVariable_Check(value)) throw NotFused("step is no tensor");
    const c10::TensorImpl& step = state_tensor(value, "step");
    if (!step.is_cpu()) fail("step", "is on " + step.device().str() + ", the parameter on cpu");
    if (step.numel() != 1) fail("step", "has shape " + shape_of(step) + ", not one element");
    const auto type = step.dtype().toScalarType();
    if (type != at::kFloat && type != at::kDouble) throw NotFused("step is of no float dtype");
    if (!is_plain(step)) throw NotFused("step is no plain strided tensor");
    void* data = locate(step, "step");
    const double count =
        type == at::kFloat ? *static_cast<float*>(data) : *static_cast<double*>(data);
    if (!(count >= 0) || std::isinf(count))
      fail("step", "is " + std::to_string(count) + ", not a count of steps");
    // Powers are computed for whole steps that a double counts exactly; torch's pow takes others.
    if (count > 9e15 || count != std::floor(count)) throw NotFused("step is no whole number");
    result_.written.push_back(const_cast<c10::TensorImpl*>(&step));
    result_.steps.push_back({data, type == at::kFloat ? DType::Float32 : DType::Float64,
                             static_cast<int64_t>(result_.table.entries.size())});
  }

  [[noreturn]] void fail(const char* tensor, const std::string& what) const {
    throw std::runtime_error(std::string("fused_optim.") + spec_.name + ": group " +
                             std::to_string(group_) + ", parameter " + std::to_string(index_) +
                             ": '" + tensor + "' " + what + ". Nothing was changed.");
  }

  const RuleSpec& spec_;
  const RuleKeys& keys_;
  PyObject* groups_;
  PyObject* state_;
  const double grad_multiplier_;
  OverlapCheck overlap_;
  Gathered result_;
  std::vector<FoundParam> found_;
  Py_ssize_t group_ = 0, index_ = 0;
  Variant variant_ = 0;
};

}  // namespace

Gathered gather(int rule, PyObject* param_groups, PyObject* state, double grad_multiplier) {
  const at::NoGradGuard no_grad;
  // Such a mode (FakeTensorMode, tracers, counters) means to see the operations.
  if (c10::impl::TorchDispatchModeTLS::any_modes_set())
    throw NotFused("a TorchDispatchMode is active");
  return Gatherer(rule, param_groups, state, grad_multiplier).run();
}

}  // namespace fused_optim
