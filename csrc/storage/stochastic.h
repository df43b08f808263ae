// Stochastic rounding: up or down with probabilities that make the mean exact.
#pragma once

#include "storage/bfloat16.h"

namespace fused_optim {

/// The value's bits without the `count` lowest: those of the sum with as many random bits. What is
/// beyond the largest finite number becomes infinite; infinities stay, and NaNs become one.
template <int count>
FUSED_OPTIM_INLINE uint32_t upper_bits(float value, uint32_t random) {
  const uint32_t rounded = (bits_as<uint32_t>(value) + (random >> (32 - count))) >> count;
  return value != value ? 0x7fc00000u >> count : rounded;
}

FUSED_OPTIM_INLINE bfloat16 to_bfloat16(float value, uint32_t random) {
  return {static_cast<uint16_t>(upper_bits<16>(value, random))};
}

}  // namespace fused_optim
