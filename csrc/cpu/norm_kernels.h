// The CPU's norm kernels, by instruction set and dtype.
#pragma once

#include "cpu/isa.h"
#include "reduce/norm.h"

namespace fused_optim::cpu {

struct NormKernels {
  double (*sum_chunk[kNumNormTypes])(const void* data, int64_t count);  // of terms; count above 0
  void (*scale)(void* data, int64_t count, double coefficient);
};

namespace baseline {
NormKernels find_norm_kernels(Format dtype);
}
#if defined(__x86_64__)
namespace avx2 {
NormKernels find_norm_kernels(Format dtype);
}
namespace avx512 {
NormKernels find_norm_kernels(Format dtype);
}
#endif

inline NormKernels find_norm_kernels(Isa isa, Format dtype) {
#if defined(__x86_64__)
  if (isa == Isa::AVX512) return avx512::find_norm_kernels(dtype);
  if (isa == Isa::AVX2) return avx2::find_norm_kernels(dtype);
#endif
  (void)isa;
  return baseline::find_norm_kernels(dtype);
}

}  // namespace fused_optim::cpu
