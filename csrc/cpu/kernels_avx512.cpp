// The CPU kernels for avx512f,avx512bw,avx512vl,avx512dq,fma.
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

#define FUSED_OPTIM_BLOCKS_AVX512

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,fma,prefer-vector-width=512")
#endif

namespace fused_optim::cpu::avx512 {
#include "cpu/kernels.inc"
#include "cpu/norm.inc"
}  // namespace fused_optim::cpu::avx512

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
