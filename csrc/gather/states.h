// A parameter's states on their way into the table: those that it has, checked, and new ones.
#pragma once

#include "gather/compact_states.h"
#include "gather/entry_builder.h"
#include "gather/group.h"
#include "gather/lookup.h"

namespace fused_optim {

class StateGatherer {
 public:
  /// `states`: of all parameters.
  StateGatherer(const RuleSpec& rule, const RuleRows& rows, PyObject* states,
                const StepOptions& options, Sharded& sharded, EntryBuilder& builder,
                Gathered& gathered)
      : rule_(rule),
        rows_(rows),
        states_(states),
        ema_dtype_(options.ema_dtype),
        sharded_(sharded),
        builder_(builder),
        gathered_(gathered),
        compact_(rule, rows, options, sharded, builder, gathered) {}

  /// Adds all states of a parameter with a gradient to its entry, which is the table's next one.
  void add(TensorEntry& entry, const AtHand& param, RowMask are_on);

  /// A parameter without a gradient: its average goes on towards it.
  void add_average_alone(const AtHand& param);

 private:
  void add_step(TensorEntry& entry, const FoundParam& found, int row, bool all_new);
  void add_one_element(TensorEntry& entry, const FoundParam& found, const ParamGroup& group,
                       int row, bool all_new);
  /// Whether it is new.
  bool add_like_param(TensorEntry& entry, const AtHand& param, int row, bool all_new);
  void add_existing(TensorEntry& entry, const AtHand& param, int row);
  /// `remainder`: of the parameter's master, nullptr where it has none.
  void add_average(TensorEntry& entry, const AtHand& param, const at::Tensor* remainder);
  /// An existing state of a dtype that kernels take, or what it becomes: of the dtype asked for.
  const at::Tensor& in_dtype(Device device, const FoundParam& found, int row,
                             const at::Tensor& state, std::optional<at::ScalarType> dtype);
  const at::Tensor& replaced(Device device, const FoundParam& found, int row, const at::Tensor& by);
  const at::Tensor& existing(const FoundParam& found, int row);
  OneElementState& place_of(const StateRow& row);
  void check_one_format(const StateRow& row) const;
  void count_steps_by_state(TensorEntry& entry, bool is_first);

  const RuleSpec& rule_;
  const RuleRows& rows_;
  PyObject* states_;
  const std::optional<at::ScalarType> ema_dtype_;
  Sharded& sharded_;
  EntryBuilder& builder_;
  Gathered& gathered_;
  CompactStates compact_;
};

}  // namespace fused_optim
