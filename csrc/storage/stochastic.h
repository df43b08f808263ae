// Stochastic rounding: up or down with probabilities that make the mean exact.
#pragma once

#include "storage/bfloat16.h"

namespace fused_optim {

/// The value with its `count` lowest bits gone: those of the sum with as many random bits. What is
/// beyond the largest finite number becomes infinite; infinities stay, and NaNs become one.
template <int count>
FUSED_OPTIM_INLINE uint32_t rounded_bits(float value, uint32_t random) {
  const uint32_t bits = bits_as<uint32_t>(value);
  const uint32_t rounded = (bits + (random >> (32 - count))) >> count << count;
  return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc00000u : rounded;
}

FUSED_OPTIM_INLINE bfloat16 to_bfloat16(float value, uint32_t random) {
  return {static_cast<uint16_t>(rounded_bits<16>(value, random) >> 16)};
}

}  // namespace fused_optim
