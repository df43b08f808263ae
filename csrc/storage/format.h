// What a storage format is: how a number lies in memory, and its value to compute with.
//
// A format is a type of its own, in a header of its own, with
//   to_opmath(stored)           its value, exactly;
//   to_storage<Format>(value)   the nearest number that it has, ties to even, every NaN one NaN;
// and a line in storage/registry.h, from which all that chooses by format is made. What a processor
// does in one instruction may be an overload beside: of two at once, to_storage_pair, of whole
// blocks, blocks*.inc. Conversions are the same bits on every instruction set and
// device, NaN's own bits apart, and branch-free, so that a loop around them vectorises. GPUs
// convert in one instruction, which rounds to nearest even, too, and makes every NaN 0x7fff.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/numeric.h"

namespace fused_optim {

/// The type that a format is computed in: float for float and the half types, else double.
template <class Storage>
using opmath_t = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

template <class Storage, class T>
FUSED_OPTIM_INLINE Storage to_storage(T value);

FUSED_OPTIM_INLINE float to_opmath(float value) {
  return value;
}
FUSED_OPTIM_INLINE double to_opmath(double value) {
  return value;
}

template <>
FUSED_OPTIM_INLINE float to_storage<float, float>(float value) {
  return value;
}

template <>
FUSED_OPTIM_INLINE double to_storage<double, double>(double value) {
  return value;
}

/// Two elements of a half type in a word, as they lie in memory: the first one in its lower half.
template <class Half>
FUSED_OPTIM_INLINE uint32_t to_storage_pair(float first, float second) {
  return to_storage<Half>(first).bits | static_cast<uint32_t>(to_storage<Half>(second).bits) << 16;
}

/// The double as a float that rounds on to any narrower format as the double itself would: towards
/// zero, and odd where that is not exact (Boldo & Melquiond 2008).
FUSED_OPTIM_INLINE float round_to_odd(double value) {
  const auto nearest = static_cast<float>(value);
  const double error = value - static_cast<double>(nearest);
  const uint32_t bits = bits_as<uint32_t>(nearest);
  const bool is_beyond = (error < 0.0) == (nearest > 0.0f);
  const uint32_t odd = is_beyond ? bits - 1u : bits + 1u;
  const bool is_inexact = error != 0.0 && error == error && (bits & 1u) == 0u && nearest != 0.0f;
  return bits_as<float>(is_inexact ? odd : bits);
}

/// What is stored, to compute with in T, float or double.
template <class T, class Storage>
FUSED_OPTIM_INLINE T decoded(Storage stored) {
  return static_cast<T>(to_opmath(stored));
}

/// The reverse, rounded once.
template <class Storage, class T>
FUSED_OPTIM_INLINE Storage encoded(T value) {
  if constexpr (std::is_same_v<T, opmath_t<Storage>>)
    return to_storage<Storage>(value);
  else if constexpr (sizeof(Storage) < sizeof(float))
    return to_storage<Storage>(round_to_odd(value));
  else
    return static_cast<Storage>(value);
}

}  // namespace fused_optim
