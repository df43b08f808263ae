// The CPU kernels for avx2,fma.
#if defined(__x86_64__)
#include <algorithm>
#include <cstring>
#include <vector>

#include "../instances.h"
#include "../rules/scalar_states.h"
#include "kernels.h"
#include "norm_kernels.h"
#include "strided.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace fused_optim::cpu::avx2 {
#include "kernels.inc"
#include "norm.inc"
}  // namespace fused_optim::cpu::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif  // __x86_64__
