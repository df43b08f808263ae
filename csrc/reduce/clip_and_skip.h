// What the norm of the gradients decides: how they are clipped, and whether the step is done.
#pragma once

#include "reduce/norm.h"

namespace fused_optim {

/// Three doubles in a tensor, where the norm was computed.
struct Decision {
  double grad_norm;    // over AMP's scale, before clipping
  double coefficient;  // for the gradients
  double is_skipped;   // 0 or 1
};

/// From the norm to the decision: for one thread, on the host or on the norm's device.
struct ClipAndSkip {
  Decision* decision = nullptr;
  double scale = 1.0;                 // AMP's, where the host knows it
  const float* grad_scale = nullptr;  // else where it lies, or nullptr
  const float* found_inf = nullptr;   // likewise
  bool has_overflowed = false;        // AMP has, and the host knows
  bool skip_nonfinite = false;
  double max_norm = -1.0;            // below 0: nothing is clipped
  int64_t* skipped_steps = nullptr;  // counts, or nullptr

  FUSED_OPTIM_INLINE void decide(double norm) const {
    const bool is_finite = norm - norm == 0.0;
    const bool found = found_inf != nullptr && *found_inf != 0.0f;
    const bool skipped = has_overflowed || found || (skip_nonfinite && !is_finite);
    norm /= grad_scale == nullptr ? scale : static_cast<double>(*grad_scale);
    *decision = {norm, max_norm < 0.0 ? 1.0 : clip_coefficient(norm, max_norm),
                 skipped ? 1.0 : 0.0};
    if (skipped && skipped_steps != nullptr) *skipped_steps += 1;
  }
};

}  // namespace fused_optim
