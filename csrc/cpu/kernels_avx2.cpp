// The CPU kernels for avx2,fma,f16c.
#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/norm_kernels.h"
#include "rules/one_element_states.h"
#include "step/entry_values.h"
#include "step/kernel_types.h"

#define FUSED_OPTIM_BLOCKS_AVX2

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace fused_optim::cpu::avx2 {
#include "cpu/kernels.inc"
#include "cpu/norm.inc"
}  // namespace fused_optim::cpu::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
