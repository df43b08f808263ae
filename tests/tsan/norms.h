// Norms and scaling of gradients as the engine sees them.
#pragma once

#include <vector>

#include "memory.h"
#include "reduce/gradients.h"

namespace fused_optim::tsan {

/// Gradients of all dtypes, the same whenever they are made.
class ManyGradients {
 public:
  ManyGradients();
  ManyGradients(const ManyGradients&) = delete;  // `gradients_` points into `memory_`

  /// All norms, then the gradients scaled.
  void measure_and_scale();
  bool has_same_bits(const ManyGradients& other) const;
  const std::vector<Gradient>& entries() const { return gradients_.entries; }
  const std::vector<double>& results() const { return results_; }

 private:
  Bytes memory_;
  Gradients gradients_;
  std::vector<double> results_;  // of each kind of norm: the chunks' sums, the norm
};

}  // namespace fused_optim::tsan
