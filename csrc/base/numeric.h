// The scalar functions that rules are written with.
//
// Every function here gives the same bits on every instruction set and device, NaN's own bits
// apart: only IEEE operations and integer arithmetic, no libm.
#pragma once

#include <cstdint>
#include <cstring>

#include "base/platform.h"

namespace fused_optim {

template <class To, class From>
FUSED_OPTIM_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

FUSED_OPTIM_INLINE float square_root(float value) {
  return __builtin_sqrtf(value);
}
FUSED_OPTIM_INLINE double square_root(double value) {
  return __builtin_sqrt(value);
}

/// torch.lerp: from start to end by weight, by the formula that is exact at the nearer end.
template <class T>
FUSED_OPTIM_INLINE T lerp(T start, T end, T weight) {
  const T difference = end - start;
  return weight < T(0.5) ? start + weight * difference : end - difference * (T(1) - weight);
}

/// torch.maximum: the larger one, NaN if either is NaN.
template <class T>
FUSED_OPTIM_INLINE T maximum(T a, T b) {
  return (a > b || a != a) ? a : b;
}

template <class T>
FUSED_OPTIM_INLINE T absolute(T value) {
  return value < T(0) ? -value : value;
}

/// torch.sign: -1, 0 or 1, and 0 for NaN.
template <class T>
FUSED_OPTIM_INLINE T sign(T value) {
  const T positive = value > T(0) ? T(1) : T(0);
  return value < T(0) ? T(-1) : positive;
}

/// torch.clamp: NaN stays NaN.
template <class T>
FUSED_OPTIM_INLINE T clamp(T value, T min, T max) {
  const T at_least = value < min ? min : value;
  return at_least > max ? max : at_least;
}

}  // namespace fused_optim
