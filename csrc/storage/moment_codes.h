// Moments in 8 bits: codes, and a scale for each block of kCodesInBlock elements.
//
// Decoding is exact, and to encode what was decoded gives the same values again: scales are numbers
// of few bits. Both kinds are rounded stochastically, since to nearest a moving average that moves
// by less than half a code would stand still.
#pragma once

#include "storage/stochastic.h"

namespace fused_optim {

/// Elements of a block, counted in memory from a tensor's first.
constexpr int64_t kCodesInBlock = 128;

/// First moments: code c of -127 to 127 is c |c| scale, so that small values have small errors.
struct SignedCodes {
  using Code = int8_t;

  static constexpr float kLargestSquare = 127.0f * 127.0f;

  /// Of a block whose largest magnitude has these bits, which gets code 127. Rounded down to 10
  /// bits, so that products with the squares of codes are exact. NaN where a value of the block is
  /// no finite number.
  FUSED_OPTIM_INLINE static float scale_of(uint32_t largest) {
    constexpr float kSmallest = 0x1p-126f;
    const float exact = bits_as<float>(largest) / kLargestSquare;
    const uint32_t bits = bits_as<uint32_t>(exact < kSmallest ? kSmallest : exact) & ~0x3fffu;
    return bits_as<float>(largest >= 0x7f800000u ? 0x7fc00000u : bits);
  }

  FUSED_OPTIM_INLINE static float decode(Code code, float scale) {
    const auto root = static_cast<float>(code);
    return root * absolute(root) * scale;
  }

  /// What values of the block are multiplied by before they are encoded: a little more than the
  /// reciprocal, so that no rounding takes the largest one below its code's square.
  FUSED_OPTIM_INLINE static float factor_of(float scale) {
    return 1.0f / scale * (1.0f + 0x1p-21f);
  }

  /// Up where the random number is below the share of the way from the code's square to the next
  /// one's.
  FUSED_OPTIM_INLINE static Code encode(float value, float factor, uint32_t random) {
    const float square = square_of(value, factor);
    const auto code = static_cast<int32_t>(square_root(square));
    const auto below = static_cast<float>(code);
    const float step = below * 0x1p-23f + 0x1p-24f;  // from one square to the next, of 2^24
    const float threshold = step * static_cast<float>(static_cast<int32_t>(random >> 8));
    const int32_t next = code + 1;
    return with_sign(threshold < square - below * below ? next : code, value);
  }
  FUSED_OPTIM_INLINE static Code encode_to_nearest(float value, float factor) {
    return with_sign(static_cast<int32_t>(square_root(square_of(value, factor)) + 0.5f), value);
  }

 private:
  /// At most the largest code's, also of a NaN, whose block has a scale of NaN. Compared as
  /// integers, which a compiler takes for a minimum instead of two cases of all that follows.
  FUSED_OPTIM_INLINE static float square_of(float value, float factor) {
    const auto bits = static_cast<int32_t>(bits_as<uint32_t>(value * factor) & 0x7fffffffu);
    const auto largest = static_cast<int32_t>(bits_as<uint32_t>(kLargestSquare));
    return bits_as<float>(static_cast<uint32_t>(bits < largest ? bits : largest));
  }
  /// A NaN's sign, which is the processor's, is none.
  FUSED_OPTIM_INLINE static Code with_sign(int32_t code, float value) {
    return static_cast<Code>(value < 0.0f ? -code : code);
  }
};

/// Second moments, which are not negative: 4 bits of exponent and 4 of mantissa, 16 binades that
/// end with the one of the block's largest value. Code 0 is zero and nothing else: a small value is
/// never taken for zero, which would make its step a large one.
struct UnsignedCodes {
  using Code = uint8_t;
  static constexpr int kMantissaShift = 19;  // from a float's 23 bits to 4
  static constexpr int32_t kBinades = 16;
  static constexpr uint32_t kNaN = 0x7fc00000u;

  /// The power of two at which the last binade begins. A value between its largest code and its end
  /// belongs to the next one, as it may be rounded up. An infinite value is a very large one. NaN
  /// where one of the block is.
  FUSED_OPTIM_INLINE static float scale_of(uint32_t largest) {
    constexpr uint32_t kSmallest = static_cast<uint32_t>(kBinades) << 23, kLargest = 254u << 23;
    const uint32_t rounded_up = (largest + ((1u << kMantissaShift) - 1u)) & 0x7f800000u;
    const uint32_t at_least = rounded_up < kSmallest ? kSmallest : rounded_up;
    const uint32_t bits = at_least > kLargest ? kLargest : at_least;
    return bits_as<float>(largest > 0x7f800000u ? 0x7fc00000u : bits);
  }

  FUSED_OPTIM_INLINE static float decode(Code code, float scale) {
    const auto bits = static_cast<uint32_t>(code + first_code(scale)) << kMantissaShift;
    const float value = code == 0 ? 0.0f : bits_as<float>(bits);
    return scale != scale ? scale : value;
  }

  FUSED_OPTIM_INLINE static float factor_of(float scale) { return scale; }

  FUSED_OPTIM_INLINE static Code encode(float value, float scale, uint32_t random) {
    return encode_bits(value, scale, random >> (32 - kMantissaShift));
  }
  FUSED_OPTIM_INLINE static Code encode_to_nearest(float value, float scale) {
    return encode_bits(value, scale, 1u << (kMantissaShift - 1));
  }

 private:
  /// A float's sixteenths of a binade below the block's first code. Of scales that no block has the
  /// nearest one that a block may have.
  FUSED_OPTIM_INLINE static int32_t first_code(float scale) {
    const auto exponent = static_cast<int32_t>(bits_as<uint32_t>(scale) >> 23 & 0xffu);
    return (exponent < kBinades ? 1 : exponent - (kBinades - 1)) << 4;
  }
  /// Every NaN is one NaN: its code, which nothing reads, is the same on every processor.
  FUSED_OPTIM_INLINE static Code encode_bits(float value, float scale, uint32_t added) {
    const uint32_t magnitude = bits_as<uint32_t>(value) & 0x7fffffffu;
    const uint32_t bits = magnitude > kNaN ? kNaN : magnitude;
    const int32_t code = static_cast<int32_t>((bits + added) >> kMantissaShift) - first_code(scale);
    const int32_t at_least_one = code < 1 ? 1 : code;
    const int32_t in_range = at_least_one > 255 ? 255 : at_least_one;
    return static_cast<Code>(bits == 0u ? 0 : in_range);
  }
};

}  // namespace fused_optim
