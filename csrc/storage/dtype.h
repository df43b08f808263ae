// The dtypes that tensors are stored in, and their values to compute with.
//
// Conversions are the same bits on every instruction set and device, NaN's own bits apart, and
// branch-free, so that a loop around them vectorises. GPUs convert in one instruction, which rounds
// to nearest even, too, and makes every NaN 0x7fff.
#pragma once

#include <cstdint>
#include <type_traits>

#include "base/numeric.h"

namespace fused_optim {

struct bfloat16 {
  uint16_t bits;
};

struct float16 {
  uint16_t bits;
};

/// A storage type at run time.
enum class DType : uint8_t { Float32, Float64, BFloat16, Float16 };
constexpr int kNumDTypes = 4;
constexpr int64_t item_size(DType dtype) {
  return dtype == DType::Float64 ? 8 : dtype == DType::Float32 ? 4 : 2;
}

/// The type that a storage type is computed in: float for float and the half types, else double.
template <class Storage>
using opmath_t = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

/// Elements in 16 bytes.
template <class Storage>
constexpr int kPackSize = 16 / sizeof(Storage);

/// visit(Storage()) for the storage type of this dtype.
template <class Visit>
auto with_storage(DType dtype, Visit visit) {
  if (dtype == DType::Float64) return visit(double());
  if (dtype == DType::BFloat16) return visit(bfloat16());
  if (dtype == DType::Float16) return visit(float16());
  return visit(float());
}

FUSED_OPTIM_INLINE float to_opmath(float value) {
  return value;
}
FUSED_OPTIM_INLINE double to_opmath(double value) {
  return value;
}

FUSED_OPTIM_INLINE float to_opmath(bfloat16 value) {
  return bits_as<float>(static_cast<uint32_t>(value.bits) << 16);
}

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

template <class Storage, class T>
FUSED_OPTIM_INLINE Storage to_storage(T value);

template <>
FUSED_OPTIM_INLINE float to_storage<float, float>(float value) {
  return value;
}

template <>
FUSED_OPTIM_INLINE double to_storage<double, double>(double value) {
  return value;
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

/// Two elements of a half type in a word, as they lie in memory: the first one in its lower half.
template <class Half>
FUSED_OPTIM_INLINE uint32_t to_storage_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  if constexpr (std::is_same_v<Half, bfloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return to_storage<Half>(first).bits | static_cast<uint32_t>(to_storage<Half>(second).bits) << 16;
#endif
}

}  // namespace fused_optim
