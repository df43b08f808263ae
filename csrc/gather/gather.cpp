#include "gather/gather.h"

#include <c10/core/GradMode.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "base/errors.h"
#include "cuda/engine.h"
#include "gather/entry_builder.h"
#include "gather/gradient.h"
#include "gather/lookup.h"
#include "gather/python_dict.h"
#include "gather/python_tensor.h"
#include "gather/states.h"
#include "rules/registry.h"
#include "tensors/checks.h"
#include "tensors/layout.h"

namespace fused_optim {
namespace {

int64_t count_params(std::vector<ParamGroup>& groups) {
  int64_t count = 0;
  for (ParamGroup& group : groups) count += PyList_GET_SIZE(group.params.get());
  return count;
}

/// The loop over groups and their parameters.
class Gatherer {
 public:
  Gatherer(const StepArguments& arguments, const StepOptions& options, KnownMeshes& known,
           Gathered& gathered)
      : rule_(kRules[arguments.rule]),
        rows_(rows_of(arguments.rule)),
        state_(arguments.state),
        options_(options),
        across_ranks_(arguments.across_ranks),
        gathered_(gathered),
        sharded_(known),
        builder_(gathered, arguments.name,
                 count_params(gathered.groups) * (kFirstState + rows_.num_usual)),
        states_(rule_, rows_, state_, options, sharded_, builder_, gathered) {}

  void run() {
    reserve();
    check_keys(state_, sharded_);
    for (ParamGroup& group : gathered_.groups) {
      add_group(group);
      first_number_ += PyList_GET_SIZE(group.params.get());
      ++builder_.where.group;
    }
    if (builder_.has_overlap()) throw NotFused("tensors of this step overlap in memory");
  }

 private:
  void reserve() {
    const int64_t num_params = count_params(gathered_.groups);
    gathered_.table.entries.reserve(num_params);
    gathered_.table.num_one_element = rule_.num_one_element;
    gathered_.table.one_element_states.reserve(num_params * rule_.num_one_element);
    gathered_.written.reserve(num_params * (2 + rows_.num_usual));
    gathered_.read.reserve(num_params);
    if (across_ranks_ != nullptr)
      gathered_.gradients_of_placements.resize(across_ranks_->num_different);
  }

  void add_group(ParamGroup& group) {
    PyObject* params = group.params.get();
    rows_by_device_.clear();
    const RowMask average = options_.ema_decay ? RowMask{1} << rows_.average() : 0;
    const int num_rows = options_.has_compact ? rows_.num_rows : rows_.num_usual;
    const RowMask beside = (RowMask{1} << num_rows) - (RowMask{1} << rows_.num_usual);
    const Lookup lookup{rows_, group.rows | average | beside, state_, sharded_, num_rows};
    const Py_ssize_t size = PyList_GET_SIZE(params);
    for (Py_ssize_t first = 0; first < size; first += kBatch) {
      find_batch(lookup, PySequence_Fast_ITEMS(params) + first, first,
                 std::min(kBatch, size - first), found_);
      for (const FoundParam& found : found_) {
        builder_.where.index = found.index;
        builder_.begin(*found.tensor->unsafeGetTensorImpl());
        const AtHand param{found, group, first_number_ + found.index};
        if (found.grad != nullptr)
          add_param(param, lookup.are_on);
        else
          states_.add_average_alone(param);
      }
    }
  }

  void add_param(const AtHand& at_hand, RowMask are_on) {
    const auto& [found, group, number] = at_hand;
    const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
    const c10::TensorImpl& grad = *found.grad->unsafeGetTensorImpl();
    TensorTable& table = gathered_.table;
    check_param(param);
    if (found.spec != nullptr) check_sharded(found);
    TensorEntry entry{};
    entry.device = device_of(param);
    if (entry.device.kind == DeviceKind::CPU) gathered_.let_host_decide(HostDecides::ForCpuParams);
    entry.mask = static_cast<uint8_t>(group.mask);
    entry.row = row_for(group, entry.device);
    entry.numel = real_numel(param);
    builder_.add_operand(entry, param, param, kParam, "param");
    if (grad.is_sparse()) throw NotFusedAsExpected("a gradient is sparse");
    check_operand(builder_.where, param, grad, kGradName);
    add_grad(builder_, gathered_, entry, found, options_, gradients_beside(found));
    table.one_element_states.resize((table.entries.size() + 1) * table.num_one_element);
    states_.add(entry, at_hand, are_on);
    table.entries.push_back(entry);
  }

  /// What holds of a DTensor and its gradient beyond what does of their parts.
  void check_sharded(const FoundParam& found) {
    sharded_.check_is_placed(found.spec);
    if (is_plain_type(found.grad_object))
      builder_.where.fail(kGradName, "is no DTensor, the parameter is one");
    if (!sharded_.is_dtensor(found.grad_object))
      throw NotFused("a DTensor's gradient is of another type");
    if (!sharded_.are_placed_alike(found.spec, sharded_.spec_of(found.grad_object)))
      throw NotFused("a gradient is placed otherwise than its parameter");
    c10::TensorImpl* param = unpack(found.object).unsafeGetTensorImpl();
    c10::TensorImpl* grad = unpack(found.grad_object).unsafeGetTensorImpl();
    if (grad->sizes() != param->sizes())
      builder_.where.fail(kGradName,
                          "has shape " + shape_of(*grad) + ", the parameter " + shape_of(*param));
    gathered_.wrappers.push_back({found.object, found.tensor->unsafeGetTensorImpl()});
    if (options_.zero_grads)
      gathered_.wrappers.push_back({found.grad_object, found.grad->unsafeGetTensorImpl(), true});
  }

  /// Where a norm adds up this parameter's gradient.
  Gradients& gradients_beside(const FoundParam& found) {
    if (across_ranks_ == nullptr || found.spec == nullptr) return gathered_.gradients;
    const uint32_t dims = sharded_.sharded_dims(found.spec);
    const int number = across_ranks_->find(mesh_of(found.spec), dims);
    if (number < 0) throw NotFused("a parameter's placement has changed within the step");
    return gathered_.gradients_of_placements[number];
  }

  /// The group's row for this device: each of them reads device tensors of its own.
  int32_t row_for(const ParamGroup& group, Device device) {
    for (const auto& [of, row] : rows_by_device_)
      if (of == device) return row;
    std::vector<HyperparameterRow>& rows = gathered_.table.rows;
    rows.push_back(row_on(group, rule_, device, gathered_.owned));
    rows_by_device_.emplace_back(device, static_cast<int32_t>(rows.size()) - 1);
    return rows_by_device_.back().second;
  }

  const RuleSpec& rule_;
  const RuleRows& rows_;
  PyObject* state_;
  const StepOptions& options_;
  const AcrossRanks* across_ranks_;
  Gathered& gathered_;
  Sharded sharded_;
  EntryBuilder builder_;
  StateGatherer states_;
  std::vector<FoundParam> found_;
  int64_t first_number_ = 0;  // among the optimizer's parameters, of the current group's first
  std::vector<std::pair<Device, int32_t>> rows_by_device_;  // of the current group
};

std::vector<ParamGroup> read_groups(const StepArguments& arguments, const StepOptions& options) {
  PyObject* groups = arguments.param_groups;
  if (!PyList_CheckExact(groups) || !is_plain_dict(arguments.state))
    throw NotFused("param_groups is no plain list, or state no plain dict");
  std::vector<ParamGroup> read;
  read.reserve(PyList_GET_SIZE(groups));
  LastKeys last;
  // What a group's values run may change the list of groups.
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(groups); ++i) {
    THPObjectPtr group = owned(PyList_GET_ITEM(groups, i));
    read.push_back(read_group(group, rows_of(arguments.rule), kRules[arguments.rule], options, last,
                              arguments.name, i));
  }
  return read;
}

/// Throws where the host would have to wait for a device whose work is only recorded.
void check_host_can_wait(const Gathered& gathered) {
  for (const TensorEntry& entry : gathered.table.entries)
    if (entry.device.kind == DeviceKind::CUDA && cuda::is_capturing(entry.device))
      throw std::runtime_error(
          std::string("fused_optim: the host has to know whether the step is skipped, since ") +
          text_of(gathered.host_decides) +
          ", but a CUDA graph is being captured. Nothing was changed.");
}

/// Steps with these options, as what was found in groups and states has it.
StepOptions with_compact(const StepOptions& options) {
  StepOptions with = options;
  with.has_compact = true;
  return with;
}

void run_gatherer(const StepArguments& arguments, const StepOptions& options, KnownMeshes& known,
                  Gathered& gathered) {
  gathered.has_compact =
      options.has_compact || std::ranges::any_of(gathered.groups, &ParamGroup::asks_for_compact);
  if (gathered.has_compact == options.has_compact)
    return Gatherer(arguments, options, known, gathered).run();
  const StepOptions with = with_compact(options);
  Gatherer(arguments, with, known, gathered).run();
}

Gathered gather_once(const StepArguments& arguments, Amp& amp, const StepOptions& options,
                     KnownMeshes& known) {
  const at::NoGradGuard no_grad;
  // Such a mode (FakeTensorMode, tracers, counters) means to see the operations.
  if (c10::impl::TorchDispatchModeTLS::any_modes_set())
    throw NotFusedAsExpected("a TorchDispatchMode is active");
  Gathered gathered;
  gathered.groups = read_groups(arguments, options);
  gathered.table.rule = arguments.rule;
  gathered.table.zero_grads = options.zero_grads;
  if (options.ema_decay) gathered.table.ema_weight = 1.0 - *options.ema_decay;
  run_gatherer(arguments, options, known, gathered);
  if (gathered.host_decides != HostDecides::No) {
    if (amp.is_on_device() || options.needs_norm()) check_host_can_wait(gathered);
    amp.read_on_host();
  }
  amp.apply(gathered.table, gathered.owned);
  return gathered;
}

}  // namespace

Gathered gather(const StepArguments& arguments, Amp& amp, const StepOptions& options) {
  KnownMeshes known;
  for (;;) {
    try {
      Gathered gathered = gather_once(arguments, amp, options, known);
      if (!known.ask()) return gathered;
    } catch (const PythonError&) {
      throw;
    } catch (const HasCompact&) {
      return gather(arguments, amp, with_compact(options));
    } catch (...) {
      if (!known.ask()) throw;
    }
  }
}

}  // namespace fused_optim
