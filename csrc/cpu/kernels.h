// The CPU kernels' signature and their tables, one for each instruction set.
#pragma once

#include "cpu/isa.h"
#include "step/table.h"

namespace fused_optim::cpu {

/// Elements a tile: small enough for every operand's tile to stay in the first-level cache.
constexpr int64_t kTileSize = 512;
/// Where the parameter has a tile: so few elements at a time that the processor, which looks some
/// hundred instructions ahead, asks the memory for the next tiles while the update is computed.
constexpr int64_t kFewElements = kTileSize / 2;

/// Steps the elements begin to end of the bucket's index space.
using Kernel = void (*)(const Bucket& bucket, int64_t begin, int64_t end);

namespace baseline {
Kernel find_kernel(int rule, StateMask states, bool is_double);
}
#if defined(__x86_64__)
namespace avx2 {
Kernel find_kernel(int rule, StateMask states, bool is_double);
}
namespace avx512 {
Kernel find_kernel(int rule, StateMask states, bool is_double);
}
#endif

inline Kernel find_kernel(Isa isa, int rule, StateMask states, bool is_double) {
#if defined(__x86_64__)
  if (isa == Isa::AVX512) return avx512::find_kernel(rule, states, is_double);
  if (isa == Isa::AVX2) return avx2::find_kernel(rule, states, is_double);
#endif
  (void)isa;
  return baseline::find_kernel(rule, states, is_double);
}

}  // namespace fused_optim::cpu
