// Swaps the values of parameters and their averages in place: all of them or none, and back.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "tensor_checks.h"

namespace fused_optim {

/// A parameter, its average, and its place in the optimizer.
struct ExchangePair {
  Py_ssize_t group, index;
  at::Tensor param, average;
};

/// Runs no Python code where the tensors are plain ones: no signal handler, no other thread comes
/// in between.
class Exchange {
 public:
  /// Throws std::runtime_error that names group and parameter, with nothing changed, unless each
  /// average has its parameter's shape, dtype and device, and no memory is there twice.
  void begin(std::string optimizer, std::vector<ExchangePair> pairs);

  /// Swaps them back, in reverse, all that can be. Throws what names the others.
  void end();

  /// Whether the parameters hold their averages.
  bool is_active() const { return is_active_; }

 private:
  std::string optimizer_;  // its name, for errors
  std::vector<ExchangePair> pairs_;
  bool is_active_ = false;
};

}  // namespace fused_optim
