// A parameter's states on their way into the table: those that it has, checked, and new ones.
#pragma once

#include "gather/entry_builder.h"
#include "gather/group.h"
#include "gather/lookup.h"

namespace fused_optim {

class StateGatherer {
 public:
  /// `states`: of all parameters. `ema_dtype`: of averages, where it is asked for.
  StateGatherer(const RuleSpec& rule, const RuleRows& rows, PyObject* states,
                std::optional<at::ScalarType> ema_dtype, Sharded& sharded, EntryBuilder& builder,
                Gathered& gathered)
      : rule_(rule),
        rows_(rows),
        states_(states),
        ema_dtype_(ema_dtype),
        sharded_(sharded),
        builder_(builder),
        gathered_(gathered) {}

  /// Adds all states of a parameter with a gradient to its entry, which is the table's next one.
  void add(TensorEntry& entry, const FoundParam& found, const ParamGroup& group, RowMask are_on);

  /// A parameter without a gradient: its average goes on towards it.
  void add_average_alone(const FoundParam& found);

 private:
  void add_step(TensorEntry& entry, const FoundParam& found, int row, bool all_new);
  void add_one_element(TensorEntry& entry, const FoundParam& found, const ParamGroup& group,
                       int row, bool all_new);
  /// Whether it is new.
  bool add_like_param(TensorEntry& entry, const FoundParam& found, const ParamGroup& group, int row,
                      bool all_new);
  void add_average(TensorEntry& entry, const FoundParam& found, int row);
  /// The state of the parameter's shape as it is, or this rank's part of it.
  const at::Tensor& local_state(const FoundParam& found, int row);
  const at::Tensor& existing_like_param(Device device, const FoundParam& found, int row,
                                        std::optional<at::ScalarType> dtype);
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
};

}  // namespace fused_optim
