// What a parameter keeps in compact formats, on its way into the table: codes with their scales,
// the remainder of its master, and what random bits are made of.
#pragma once

#include <optional>

#include "gather/entry_builder.h"
#include "gather/group.h"
#include "gather/lookup.h"
#include "gather/step_options.h"

namespace fused_optim {

/// Tensors with fewer elements keep their states in float32: 8 bits would save little, and
/// embeddings of few rows, norms and biases are where they cost most.
inline constexpr int64_t kFewestInCodes = 4096;

/// A parameter at hand: what was found of it, its group, and its number in the optimizer.
struct AtHand {
  const FoundParam& found;
  const ParamGroup& group;
  int64_t number;

  const at::Tensor& tensor() const { return *found.tensor; }
  const c10::TensorImpl& impl() const { return *found.tensor->unsafeGetTensorImpl(); }
};

class CompactStates {
 public:
  CompactStates(const RuleSpec& rule, const RuleRows& rows, const StepOptions& options,
                Sharded& sharded, EntryBuilder& builder, Gathered& gathered)
      : rule_(rule),
        rows_(rows),
        options_(options),
        sharded_(sharded),
        builder_(builder),
        gathered_(gathered) {}

  /// Whether the parameter has a master.
  bool has_master(const AtHand& param) const {
    return param.group.master_bits != 0 && param.tensor().scalar_type() == at::kBFloat16;
  }

  /// Whether an existing state may be in codes, or become of another dtype.
  bool may_change(const AtHand& param, int row) const {
    return options_.has_compact || param.group.dtypes[row];
  }

  /// The dtype that a state of the parameter's shape is to have; none: its own, or for a new one
  /// the parameter's. kCodes stands for codes of either kind.
  std::optional<at::ScalarType> dtype_of(const AtHand& param, int row) const;

  /// Beside a master, the float32 values of a state that a constructor made, in bfloat16, and that
  /// nothing has stepped since: what it begins with, which bfloat16 has rounded. Of any other state
  /// none. `dtype`: that it is to have.
  at::Tensor as_begun(const AtHand& param, const at::Tensor& state,
                      std::optional<at::ScalarType> dtype, int row);

  /// Whether an existing state, checked but for its dtype, is in codes.
  bool is_coded(const at::Tensor& state) const {
    return options_.has_compact &&
           (state.scalar_type() == at::kChar || state.scalar_type() == at::kByte);
  }

  /// The float values of an existing state in codes, which is checked.
  at::Tensor values_of(const AtHand& param, const at::Tensor& codes, int row);

  /// An existing state in codes, as it is.
  void add_coded(TensorEntry& entry, const AtHand& param, const at::Tensor& codes, int row);

  /// A new state in codes: of these values, or of zeros where there are none.
  void add_newly_coded(TensorEntry& entry, const AtHand& param, const at::Tensor* values, int row);

  /// The remainder of its master, new where it has none, or one of floats as a state dict has it.
  const at::Tensor& remainder_of(Device device, const AtHand& param);

  /// Once all states are added: the remainder, which operands are rounded stochastically, and where
  /// the rule has no step, the counter.
  void finish(TensorEntry& entry, const AtHand& param, const at::Tensor* remainder);

 private:
  void check_takes_codes(const AtHand& param, int row) const;
  Moment moment_of(int row) const { return rows_.rows[row].spec.moment; }
  const at::Tensor& scales_of(const AtHand& param, const at::Tensor& codes, int row);
  void add(TensorEntry& entry, const at::Tensor& codes, const at::Tensor& scales, int row);
  [[noreturn]] void fail_of_remainder(const AtHand& param, const at::Tensor& remainder,
                                      at::ScalarType dtype) const;
  void add_master(TensorEntry& entry, const AtHand& param, const at::Tensor* remainder);
  void choose_stochastic(TensorEntry& entry, const AtHand& param);
  /// Whether anything of the entry is rounded with random bits.
  bool is_random(const TensorEntry& entry) const;
  void add_counter(TensorEntry& entry, const AtHand& param);

  const RuleSpec& rule_;
  const RuleRows& rows_;
  const StepOptions& options_;
  Sharded& sharded_;
  EntryBuilder& builder_;
  Gathered& gathered_;
};

}  // namespace fused_optim
