// The CPU kernels' signature and their tables, one for each instruction set.
#pragma once

#include "../table.h"
#include "isa.h"

namespace fused_optim::cpu {

/// Steps the elements begin to end of the bucket's index space.
using Kernel = void (*)(const Bucket& bucket, int64_t begin, int64_t end);

namespace baseline {
Kernel find_kernel(int rule, Variant variant, DType dtype);
}
#if defined(__x86_64__)
namespace avx2 {
Kernel find_kernel(int rule, Variant variant, DType dtype);
}
namespace avx512 {
Kernel find_kernel(int rule, Variant variant, DType dtype);
}
#endif

inline Kernel find_kernel(Isa isa, int rule, Variant variant, DType dtype) {
#if defined(__x86_64__)
  if (isa == Isa::AVX512) return avx512::find_kernel(rule, variant, dtype);
  if (isa == Isa::AVX2) return avx2::find_kernel(rule, variant, dtype);
#endif
  (void)isa;
  return baseline::find_kernel(rule, variant, dtype);
}

}  // namespace fused_optim::cpu
