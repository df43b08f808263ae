// A block as a kernel's body sees it: work in phases, each of which is done for all of the block's
// threads, and what is done once for all of them.
//
// A block has
//   number, num_blocks, num_threads   its place in the launch, and its size;
//   each(phase)                       calls phase(thread);
//   each_up_to<count>(begin, end, phases...)
//                                     calls phase(thread, i, n) for each phase: of the items from
//                                     `begin` to `end`, a thread's n-th is its i, up to `count` of
//                                     them;
//   each_of<Value>(begin, end, phases...)
//                                     calls phase(i, value) for each phase and all items, `value`
//                                     being what one phase leaves to the next;
//   once(action)                      calls action() on behalf of all threads;
//   wait()                            what was written before is there for all threads after;
//   Local<Value>                      a variable of each thread: local[thread];
//   largest_among<count>(locals, number)
//                                     makes number(local), a uint32_t& in each thread's variable,
//                                     the largest one of `count` threads side by side, which
//                                     divides the size of a warp and of the block. All threads of
//                                     the block take part.
// No phase relies on what another thread has done in it, or in the one before it without waiting in
// between. Threads leave each_up_to and each_of with their last item: a body that shares a value of
// the block, its maximum, waits between calls of each(), in rounds that all threads go through.
// On the device all of it is one thread's, which goes through its own items; on the host, in
// cuda/host_block.h, all threads are through with a phase before any begins the next.
#pragma once

#include <cstdint>

#include "base/platform.h"

namespace fused_optim::cuda {

/// A block on the device, for one of its threads.
struct DeviceBlock {
  uint32_t number, thread, num_blocks, num_threads;

  template <class Value>
  struct Local {
    FUSED_OPTIM_INLINE explicit Local(const DeviceBlock&) {}
    FUSED_OPTIM_INLINE Value& operator[](uint32_t) { return value; }

    Value value;
  };

  template <class Phase>
  FUSED_OPTIM_INLINE void each(Phase phase) const {
    phase(thread);
  }
  template <int kCount, class... Phases>
  FUSED_OPTIM_INLINE void each_up_to(uint32_t begin, uint32_t end, Phases... phases) const {
    FUSED_OPTIM_UNROLL
    for (int n = 0; n < kCount; ++n) {
      const uint32_t i = begin + n * num_threads + thread;
      if (i >= end) break;
      (phases(thread, i, n), ...);
    }
  }
  template <class Value, class... Phases>
  FUSED_OPTIM_INLINE void each_of(uint32_t begin, uint32_t end, Phases... phases) const {
    for (uint32_t i = begin + thread; i < end; i += num_threads) {
      Value value;
      (phases(i, value), ...);
    }
  }
  template <int kCount, class Value, class Number>
  FUSED_OPTIM_INLINE void largest_among(Local<Value>& locals, Number number) const {
#if defined(__CUDA_ARCH__)
    uint32_t& largest = number(locals[thread]);
    FUSED_OPTIM_UNROLL
    for (int distance = kCount / 2; distance > 0; distance /= 2) {
      const uint32_t other = __shfl_xor_sync(~0u, largest, distance);
      largest = other > largest ? other : largest;
    }
#endif
  }
  template <class Action>
  FUSED_OPTIM_INLINE void once(Action action) const {
    if (thread == 0) action();
  }
  FUSED_OPTIM_INLINE void wait() const {
#if defined(__CUDA_ARCH__)
    __syncthreads();
#endif
  }
};

}  // namespace fused_optim::cuda
