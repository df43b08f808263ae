// A block of a kernel's threads on the host: each phase is done for all of them before the next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

namespace fused_optim::cuda {

/// What cuda/block.h says. Threads come in no order on the device: here every other block runs them
/// backwards, so that none can count on those before it.
struct HostBlock {
  uint32_t number, num_blocks, num_threads;

  template <class Value>
  class Local {
   public:
    /// Not set, as registers are not.
    explicit Local(const HostBlock& block) : values_(new Value[block.num_threads]) {}
    Value& operator[](uint32_t thread) { return values_[thread]; }

   private:
    std::unique_ptr<Value[]> values_;
  };

  template <class Phase>
  void each(Phase phase) const {
    for (uint32_t i = 0; i < num_threads; ++i) phase(number % 2 == 0 ? i : num_threads - 1 - i);
  }
  template <int kCount, class... Phases>
  void each_up_to(uint32_t begin, uint32_t end, Phases... phases) const {
    for (int n = 0; n < kCount; ++n) {
      const uint32_t first = begin + n * num_threads;
      const auto run = [&](auto& phase) {
        each([&](uint32_t thread) {
          if (first + thread < end) phase(thread, first + thread, n);
        });
      };
      (run(phases), ...);
    }
  }
  template <class Value, class... Phases>
  void each_of(uint32_t begin, uint32_t end, Phases... phases) const {
    Local<Value> values(*this);
    for (uint32_t first = begin; first < end; first += num_threads) {
      each_up_to<1>(first, end,
                    [&](uint32_t thread, uint32_t i, int) { phases(i, values[thread]); }...);
    }
  }
  template <int kCount, class Value, class Number>
  void largest_among(Local<Value>& locals, Number number) const {
    for (uint32_t first = 0; first < num_threads; first += kCount) {
      uint32_t largest = 0;
      for (uint32_t i = 0; i < kCount; ++i) largest = std::max(largest, number(locals[first + i]));
      for (uint32_t i = 0; i < kCount; ++i) number(locals[first + i]) = largest;
    }
  }
  template <class Action>
  void once(Action action) const {
    action();
  }
  void wait() const {}
};

}  // namespace fused_optim::cuda
