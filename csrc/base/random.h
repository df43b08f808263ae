// Random bits by counting: a hash of what they are for, so that they are the same wherever and in
// whatever order they are asked for.
#pragma once

#include <cstdint>

#include "base/platform.h"

namespace fused_optim {

/// Mixes a number into a key (the finalizer of SplitMix64; Steele, Lea & Flood 2014).
FUSED_OPTIM_INLINE uint64_t mixed_key(uint64_t key, uint64_t number) {
  uint64_t z = key ^ (number * 0x9e3779b97f4a7c15ull + 0xbf58476d1ce4e5b9ull);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

/// The key of one operand of a tensor in one step.
FUSED_OPTIM_INLINE uint64_t random_key(uint64_t of_tensor, double step, int operand) {
  return mixed_key(of_tensor, static_cast<uint64_t>(step) * 16u + static_cast<uint32_t>(operand));
}

/// The number of the step after this one, where steps are counted for random bits alone. Counts lie
/// in float32, which holds no more than these: past them they begin again, as a count that stood
/// still would round every step alike.
template <class T>
FUSED_OPTIM_INLINE T next_count(T count) {
  return count < T(16777216) ? count + T(1) : T(1);
}

/// 32 bits for each index, which repeat after 2^32 of them; the highest are the best, the lowest
/// hardly random. In 32-bit arithmetic, which processors do for several elements at a time: two
/// multiplications, as each operation is one for each element of a step.
struct RandomBits {
  uint32_t first, second;  // halves of the key

  RandomBits() = default;
  FUSED_OPTIM_INLINE explicit RandomBits(uint64_t key)
      : first(static_cast<uint32_t>(key)), second(static_cast<uint32_t>(key >> 32)) {}

  FUSED_OPTIM_INLINE uint32_t at(uint32_t index) const { return of(begin(index)); }

  /// The same for indices one after the other: `of(x)` for an x that is begin() of the first and
  /// grows by kStep, which is an addition instead of one of the multiplications.
  static constexpr uint32_t kStep = 0x21f0aaadu;
  FUSED_OPTIM_INLINE uint32_t begin(uint32_t index) const { return (index + first) * kStep; }
  FUSED_OPTIM_INLINE uint32_t of(uint32_t x) const {
    return (x ^ second ^ (x >> 15)) * 0x735a2d97u;
  }
};

}  // namespace fused_optim
