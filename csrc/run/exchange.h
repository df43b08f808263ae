// Swaps the values of parameters and their averages in place: all of them or none, and back.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "tensors/checks.h"

namespace fused_optim {

/// A parameter, its average, and its place in the optimizer.
struct ExchangePair {
  int64_t group, index;
  at::Tensor param, average;
  std::vector<at::Tensor> wrappers = {};  // DTensors of which they are parts, for their versions
  at::Tensor buffer = {};                 // for the way back, which then takes no memory
  // Where the dtypes differ, so that one of them can't hold the other: both as they were.
  at::Tensor own_param = {}, own_average = {};
  bool is_exchanged = false;

  bool is_of_two_dtypes() const { return param.dtype() != average.dtype(); }
};

/// One of an optimizer: a step and an exchange keep out of each other's way. Runs no Python code
/// where the tensors are plain ones: no signal handler, no other thread comes in between.
class Exchange {
 public:
  /// Throws std::runtime_error that names group and parameter, with nothing changed, unless each
  /// average has its parameter's shape and device, and no memory is there twice. Nor while a
  /// step is under way.
  void begin(std::string optimizer, std::vector<ExchangePair> pairs);

  /// Swaps them back, in reverse, all that can be. Throws what names the others.
  void end();

  /// Whether the parameters hold their averages, or are about to.
  bool is_active() const { return is_active_; }

  /// Around a step. Throws while the parameters hold their averages.
  void begin_step();
  void end_step() { --steps_; }

 private:
  void swap_all();

  std::string optimizer_;  // its name, for errors
  std::vector<ExchangePair> pairs_;
  bool is_active_ = false;
  int steps_ = 0;  // under way, in as many threads
};

/// Around a step, in C++. None: nothing to keep out of.
class StepInExchange {
 public:
  explicit StepInExchange(Exchange* exchange) : exchange_(exchange) {
    if (exchange_ != nullptr) exchange_->begin_step();
  }
  ~StepInExchange() {
    if (exchange_ != nullptr) exchange_->end_step();
  }
  StepInExchange(const StepInExchange&) = delete;

 private:
  Exchange* exchange_;
};

}  // namespace fused_optim
