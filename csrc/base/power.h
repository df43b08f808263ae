// Powers for bias corrections and decays. libm's differ between platforms in the last bit; these
// are IEEE operations alone and give the same bits on every instruction set and device.
#pragma once

#include <cstdint>

#include "base/numeric.h"

namespace fused_optim {

/// base**exponent for a whole exponent, by squaring.
FUSED_OPTIM_INLINE double integer_power(double base, double exponent) {
  double power = 1.0;
  for (uint64_t n = static_cast<uint64_t>(exponent); n != 0; n >>= 1) {
    if (n & 1) power *= base;
    base *= base;
  }
  return power;
}

namespace detail {

/// ln 2 in two parts: the first has so few bits that whole multiples up to 2^20 are exact.
inline constexpr double kLn2High = 0x1.62e42fep-1, kLn2Low = 0x1.f473de6af278fp-30;

/// 2^n for -1022 <= n <= 1023.
FUSED_OPTIM_INLINE double power_of_two(int64_t n) {
  return bits_as<double>(static_cast<uint64_t>(n + 1023) << 52);
}

/// ln(value) for a normal value above 0: of mantissa m in [sqrt(1/2), sqrt(2)) and exponent e,
/// e ln 2 + 2 artanh((m - 1) / (m + 1)).
FUSED_OPTIM_INLINE double logarithm(double value) {
  const uint64_t bits = bits_as<uint64_t>(value);
  const double significand = bits_as<double>((bits & 0xfffffffffffffull) | 0x3ff0000000000000ull);
  const bool halve = significand > 0x1.6a09e667f3bcdp0;
  const double mantissa = halve ? 0.5 * significand : significand;
  const double exponent = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1023 + halve);
  const double ratio = (mantissa - 1.0) / (mantissa + 1.0);
  const double square = ratio * ratio;
  // |ratio| < 0.172: the first term left out is 2^-74 of the first.
  constexpr double kInverseOdd[] = {1. / 3,  1. / 5,  1. / 7,  1. / 9,  1. / 11, 1. / 13, 1. / 15,
                                    1. / 17, 1. / 19, 1. / 21, 1. / 23, 1. / 25, 1. / 27};
  double sum = 0.0;
  FUSED_OPTIM_UNROLL
  for (int i = 12; i >= 0; --i) sum = square * (kInverseOdd[i] + sum);
  return exponent * kLn2High + (2.0 * ratio + (2.0 * ratio * sum + exponent * kLn2Low));
}

/// e**value for |value| <= 1400: 2^n e**r, with |r| <= ln(2) / 2 in a Taylor series.
FUSED_OPTIM_INLINE double exponential(double value) {
  constexpr double kToInteger = 0x1.8p52;  // added and subtracted, it rounds to a whole number
  const double n = (value * 0x1.71547652b82fep0 + kToInteger) - kToInteger;
  const double r = (value - n * kLn2High) - n * kLn2Low;
  constexpr double kInverse[] = {1.,     1. / 2, 1. / 3,  1. / 4,  1. / 5,  1. / 6,  1. / 7,
                                 1. / 8, 1. / 9, 1. / 10, 1. / 11, 1. / 12, 1. / 13, 1. / 14};
  double sum = 1.0;
  FUSED_OPTIM_UNROLL
  for (int i = 13; i >= 0; --i) sum = 1.0 + r * kInverse[i] * sum;
  // In two factors, as 2^n itself may be out of range.
  const auto whole = static_cast<int64_t>(n);
  return sum * power_of_two(whole / 2) * power_of_two(whole - whole / 2);
}

}  // namespace detail

/// base**exponent for base >= 0 (NaN below), within (2 + |ln(result)|) 2^-52 of the exact value.
/// A subnormal base counts as 0.
FUSED_OPTIM_INLINE double power(double base, double exponent) {
  if (exponent == 0.0 || base == 1.0) return 1.0;
  if (!(base >= 0.0) || exponent != exponent) return __builtin_nan("");
  constexpr double kInfinity = __builtin_huge_val();
  if (base < 0x1p-1022) return exponent > 0.0 ? 0.0 : kInfinity;
  if (base == kInfinity) return exponent > 0.0 ? kInfinity : 0.0;
  const double log = clamp(exponent * detail::logarithm(base), -1400.0, 1400.0);
  return detail::exponential(log);
}

}  // namespace fused_optim
