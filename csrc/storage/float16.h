// float16 (IEEE 754 binary16): 5 bits of exponent, 10 of mantissa.
#pragma once

#include "storage/format.h"

namespace fused_optim {

struct float16 {
  uint16_t bits;
};

FUSED_OPTIM_INLINE float to_opmath(float16 value) {
#if defined(__CUDA_ARCH__)
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
#else
  const uint32_t sign = (value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + (112u << 23);
  const uint32_t inf_or_nan = (magnitude << 13) | 0x7f800000u;
  // A subnormal is mantissa * 2^-24; placed under the exponent of 0.5, one exact subtraction
  // gives it without ever forming a float subnormal (which flush-to-zero mode would lose).
  const uint32_t half = 126u << 23;
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(half + magnitude) - 0.5f);
  uint32_t bits = magnitude < 0x0400u ? subnormal : normal;
  bits = magnitude >= 0x7c00u ? inf_or_nan : bits;
  return bits_as<float>(bits | sign);
#endif
}

/// Rounds to nearest even; every NaN becomes the quiet NaN 0x7e00.
template <>
FUSED_OPTIM_INLINE float16 to_storage<float16, float>(float value) {
#if defined(__CUDA_ARCH__)
  uint16_t result;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
  return {result};
#else
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Rebias the exponent by 15 - 127; adding 0xfff and the last kept bit rounds to nearest even.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Below 2^-14 the addition of 0.5 aligns the mantissa with multiples of 2^-24 and rounds it.
  const uint32_t half = 126u << 23;
  const uint32_t subnormal = bits_as<uint32_t>(bits_as<float>(magnitude) + 0.5f) - half;
  uint32_t result = magnitude < (113u << 23) ? subnormal : normal;
  result = magnitude >= (143u << 23) ? 0x7c00u : result;
  result |= sign;
  return {static_cast<uint16_t>(magnitude > 0x7f800000u ? 0x7e00u : result)};
#endif
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
FUSED_OPTIM_INLINE uint32_t to_storage_pair<float16>(float first, float second) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
}
#endif

}  // namespace fused_optim
