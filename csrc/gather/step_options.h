// What a step does around the rule when it is asked to, and what it finds out on the way.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <optional>
#include <stdexcept>

#include "gather/state_dtypes.h"
#include "reduce/norm.h"

namespace fused_optim {

/// What a step finds out. Its tensors begin as those of the last step.
struct Found {
  at::Tensor grad_norm, skipped_steps;
  bool is_skipped = false;  // and the host knows, which then counts it
};

/// Options of the whole optimizer: no group may say otherwise.
inline constexpr const char* kStepOptionNames[] = {"max_grad_norm", "skip_nonfinite", "zero_grads",
                                                   "ema_decay",     "ema_dtype",      "norm_group",
                                                   "rounding_seed"};

/// Thrown where a group has one of them, which may have been written there by hand.
struct StepOptionInGroup : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct StepOptions {
  std::optional<double> max_grad_norm;  // of all gradients, before the update reads them; from 0
  bool skip_nonfinite = false;          // do nothing where a gradient holds an Inf or a NaN
  bool zero_grads = false;              // once they are read, or the step is skipped
  std::optional<double> ema_decay;      // of the parameters' averages, 0 to 1
  std::optional<at::ScalarType> ema_dtype;  // of the averages; none: as they are, or begin
  std::shared_ptr<const StateDtypes> state_dtypes = std::make_shared<StateDtypes>();
  int master_bits = 0;  // of bfloat16 parameters: 32, 24, or 0 for none beyond their own
  bool stochastic_rounding = false;
  uint64_t rounding_seed = 0;
  bool has_compact = false;  // whether states may be in compact formats

  at::Tensor grad_norm;      // before clipping: no dimensions, float64, on the first one's device
  at::Tensor skipped_steps;  // so far: likewise, int64

  /// Takes over what a step found.
  void publish(Found& found) {
    // Swapped, so that what is replaced goes with `found`: dropping a tensor may run a finalizer.
    std::swap(grad_norm, found.grad_norm);
    std::swap(skipped_steps, found.skipped_steps);
    if (found.is_skipped && skip_nonfinite && skipped_steps.defined()) skipped_steps.add_(1);
  }

  bool needs_norm() const { return max_grad_norm || skip_nonfinite; }
  bool any() const { return needs_norm() || zero_grads || ema_decay; }

  /// Where only Inf and NaN matter: the norm that finite gradients can't overflow.
  NormType norm_type() const { return max_grad_norm ? NormType::L2 : NormType::Inf; }
};

}  // namespace fused_optim
