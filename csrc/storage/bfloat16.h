// bfloat16: the upper half of a float.
#pragma once

#include "storage/format.h"

namespace fused_optim {

struct bfloat16 {
  uint16_t bits;
};

FUSED_OPTIM_INLINE float to_opmath(bfloat16 value) {
  return bits_as<float>(static_cast<uint32_t>(value.bits) << 16);
}

/// Rounds to nearest even; every NaN becomes the quiet NaN 0x7fc0.
template <>
FUSED_OPTIM_INLINE bfloat16 to_storage<bfloat16, float>(float value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint16_t result;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result) : "f"(value));
  return {result};
#else
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<uint16_t>(is_nan ? 0x7fc0u : rounded)};
#endif
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
FUSED_OPTIM_INLINE uint32_t to_storage_pair<bfloat16>(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
#endif

}  // namespace fused_optim
