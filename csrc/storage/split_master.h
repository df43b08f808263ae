// Master weights in two parts: a bfloat16 parameter, and beside it the bits that it lacks.
//
// The parameter is the float32 master rounded to nearest, the remainder what its bits are off by,
// so both together are the master's own bits (Transformer Engine keeps masters so).
#pragma once

#include "storage/stochastic.h"

namespace fused_optim {

/// 16 more bits: all of float32's.
struct Master32 {
  using Remainder = int16_t;
  static constexpr int kShift = 0;  // of the remainder's bits
};

/// 8 more bits: the master is a float32 whose lowest 8 bits are zero.
struct Master24 {
  using Remainder = int8_t;
  static constexpr int kShift = 8;
};

/// A remainder that no master has beside this parameter is of another number, which was there
/// before somebody changed the parameter: zero is no negative number, an infinity no NaN. Either
/// makes a NaN, and no number that has a remainder does.
template <class Master>
FUSED_OPTIM_INLINE float join(bfloat16 param, typename Master::Remainder remainder) {
  const uint32_t bits = static_cast<uint32_t>(param.bits) << 16;
  const auto rest = static_cast<uint32_t>(static_cast<int32_t>(remainder) * (1 << Master::kShift));
  const float joined = bits_as<float>(bits + rest);
  return joined != joined ? bits_as<float>(bits) : joined;
}

/// The bits that are kept of a master, moved down to the lowest; NaNs become one.
template <class Master>
FUSED_OPTIM_INLINE uint32_t kept_bits(float value) {
  uint32_t bits = bits_as<uint32_t>(value);
  if constexpr (Master::kShift > 0) {
    constexpr uint32_t kHalf = 1u << (Master::kShift - 1);
    const uint32_t last_kept = (bits >> Master::kShift) & 1u;
    bits = (bits + kHalf - 1u + last_kept) >> Master::kShift;
  }
  return value != value ? 0x7fc00000u >> Master::kShift : bits;
}

/// The same, rounded stochastically where fewer are kept than float32 has.
template <class Master>
FUSED_OPTIM_INLINE uint32_t kept_bits(float value, uint32_t random) {
  if constexpr (Master::kShift > 0)
    return upper_bits<Master::kShift>(value, random);
  else
    return kept_bits<Master>(value);
}

template <class Master>
FUSED_OPTIM_INLINE bfloat16 master_param(uint32_t kept) {
  constexpr uint32_t kHalf = 0x8000u >> Master::kShift;
  return {static_cast<uint16_t>((kept + kHalf) >> (16 - Master::kShift))};
}

template <class Master>
FUSED_OPTIM_INLINE typename Master::Remainder master_remainder(uint32_t kept) {
  return static_cast<typename Master::Remainder>(kept);
}

}  // namespace fused_optim
