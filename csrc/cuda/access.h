// Memory as CUDA kernels reach it: 16 bytes at a time.
#pragma once

#include <cstdint>

#include "storage/registry.h"

namespace fused_optim::cuda {

/// 16 bytes of a tensor as they are stored. They stay in these four registers until their values
/// are computed with: decoded at once, half types would take eight, and room for fewer loads.
struct alignas(16) Pack {
  uint32_t words[4];
};

template <class Storage>
constexpr bool kIsHalf = sizeof(Storage) == 2;

/// What packs hold: pairs of half types, or what is computed with.
#define FUSED_OPTIM_FITS(name, Storage, text) \
  static_assert(kIsHalf<Storage> || sizeof(Storage) == sizeof(opmath_t<Storage>));
FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_FITS)
#undef FUSED_OPTIM_FITS

/// Elements that are encoded together.
template <class Storage>
constexpr int kEncoded = kIsHalf<Storage> ? 2 : 1;

/// From and to an address at a multiple of 16. The host makes nothing of the alignment: gcc 12 took
/// it for that of load_elements, too, where it merged the two.
FUSED_OPTIM_INLINE Pack load(const void* from) {
#if defined(__CUDA_ARCH__)
  return bits_as<Pack>(*static_cast<const uint4*>(from));
#else
  Pack pack;
  memcpy(&pack, from, sizeof(pack));
  return pack;
#endif
}

FUSED_OPTIM_INLINE void store(void* to, const Pack& pack) {
#if defined(__CUDA_ARCH__)
  *static_cast<uint4*>(to) = bits_as<uint4>(pack);
#else
  memcpy(to, &pack, sizeof(pack));
#endif
}

/// Its first one or two words alone, from and to an address at a multiple of their size.
template <int kWords>
FUSED_OPTIM_INLINE void load_words(const char* from, Pack& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (kWords == 2) {
    const uint2 words = *reinterpret_cast<const uint2*>(from);
    pack.words[0] = words.x;
    pack.words[1] = words.y;
  } else {
    pack.words[0] = *reinterpret_cast<const uint32_t*>(from);
  }
#else
  memcpy(pack.words, from, 4 * kWords);
#endif
}

template <int kWords>
FUSED_OPTIM_INLINE void store_words(char* to, const Pack& pack) {
#if defined(__CUDA_ARCH__)
  if constexpr (kWords == 2)
    *reinterpret_cast<uint2*>(to) = uint2{pack.words[0], pack.words[1]};
  else
    *reinterpret_cast<uint32_t*>(to) = pack.words[0];
#else
  memcpy(to, pack.words, 4 * kWords);
#endif
}

/// A pack's element as it is stored.
template <class Storage>
FUSED_OPTIM_INLINE Storage element_of(const Pack& pack, int element) {
  if constexpr (kIsHalf<Storage>) {
    const uint32_t word = pack.words[element / 2];
    return {static_cast<uint16_t>(element % 2 == 0 ? word : word >> 16)};
  } else {
    Storage value;
    memcpy(&value, pack.words + element * sizeof(Storage) / 4, sizeof(Storage));
    return value;
  }
}

/// A pack's element, to compute with.
template <class Storage>
FUSED_OPTIM_INLINE opmath_t<Storage> decode(const Pack& pack, int element) {
  return to_opmath(element_of<Storage>(pack, element));
}

/// Puts kEncoded values in a pack, `first` being a multiple of their number.
template <class Storage>
FUSED_OPTIM_INLINE void encode(Pack& pack, int first,
                               const opmath_t<Storage> (&values)[kEncoded<Storage>]) {
  if constexpr (kIsHalf<Storage>)
    pack.words[first / 2] = to_storage_pair<Storage>(values[0], values[1]);
  else
    memcpy(pack.words + first * sizeof(Storage) / 4, values, sizeof(Storage));
}

/// From and to any address, element by element.
template <class Storage>
FUSED_OPTIM_INLINE Pack load_elements(const Storage* from) {
  Pack pack{};
  FUSED_OPTIM_UNROLL
  for (int i = 0; i < kPackSize<Storage>; ++i) {
    const Storage value = from[i];
    if constexpr (kIsHalf<Storage>)
      pack.words[i / 2] |= static_cast<uint32_t>(value.bits) << (i % 2 * 16);
    else
      memcpy(pack.words + i * sizeof(Storage) / 4, &value, sizeof(Storage));
  }
  return pack;
}

template <class Storage>
FUSED_OPTIM_INLINE void store_elements(Storage* to, const Pack& pack) {
  FUSED_OPTIM_UNROLL
  for (int i = 0; i < kPackSize<Storage>; ++i) to[i] = element_of<Storage>(pack, i);
}

}  // namespace fused_optim::cuda
