// Memory as CUDA kernels reach it: 16 bytes at a time, and by chunks of tensors.
#pragma once

#include <cstdint>

#include "../rules/numeric.h"

namespace fused_optim::cuda {

/// 16 bytes of a tensor.
template <class Storage>
struct alignas(16) Pack {
  Storage values[kPackSize<Storage>];
};

template <class Storage>
FUSED_OPTIM_INLINE Pack<Storage> load(const Pack<Storage>* from) {
#if defined(__CUDA_ARCH__)
  return bits_as<Pack<Storage>>(*reinterpret_cast<const uint4*>(from));
#else
  return *from;
#endif
}

template <class Storage>
FUSED_OPTIM_INLINE void store(Pack<Storage>* to, const Pack<Storage>& pack) {
#if defined(__CUDA_ARCH__)
  *reinterpret_cast<uint4*>(to) = bits_as<uint4>(pack);
#else
  *to = pack;
#endif
}

/// The entry whose chunks contain this one. `chunk_end(i)`: chunks up to the end of entry i.
template <class ChunkEnd>
FUSED_OPTIM_INLINE uint32_t find_by_chunk(uint32_t num_entries, uint32_t chunk,
                                          ChunkEnd chunk_end) {
  uint32_t low = 0, high = num_entries - 1;
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (chunk_end(middle) > chunk)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

}  // namespace fused_optim::cuda
