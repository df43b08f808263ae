// Copies between an operand with strides of its own and a tile in the parameter's memory order.
#pragma once

#include <cstdint>

#include "../table.h"

namespace fused_optim::cpu {

/// Elements a tile: small enough for every operand's tile to stay in the first-level cache.
constexpr int64_t kTileSize = 512;

/// tile[0..count) = the operand's elements begin..begin + count in the parameter's memory order.
template <class Storage>
void load_tile(const StridedLayout& layout, int operand, const void* base, int64_t begin,
               int64_t count, Storage* tile);

/// The reverse: scatters the tile to the operand.
template <class Storage>
void store_tile(const StridedLayout& layout, int operand, void* base, int64_t begin, int64_t count,
                const Storage* tile);

namespace detail {

/// Calls visit(tile index, element offset) for each element, walking the innermost dimension
/// without divisions.
template <class Visit>
void for_each_offset(const StridedLayout& layout, int operand, int64_t begin, int64_t count,
                     Visit visit) {
  const std::vector<int64_t>& sizes = layout.sizes;
  const std::vector<int64_t>& strides = layout.strides[operand];
  const int64_t inner_size = sizes.back(), inner_stride = strides.back();
  for (int64_t done = 0; done < count;) {
    int64_t rest = (begin + done) / inner_size;
    const int64_t inner = (begin + done) % inner_size;
    int64_t offset = inner * inner_stride;
    for (size_t dim = sizes.size() - 1; dim-- > 0; rest /= sizes[dim])
      offset += rest % sizes[dim] * strides[dim];
    const int64_t run = std::min(inner_size - inner, count - done);
    for (int64_t i = 0; i < run; ++i) visit(done + i, offset + i * inner_stride);
    done += run;
  }
}

}  // namespace detail

template <class Storage>
void load_tile(const StridedLayout& layout, int operand, const void* base, int64_t begin,
               int64_t count, Storage* tile) {
  const auto* data = static_cast<const Storage*>(base);
  detail::for_each_offset(layout, operand, begin, count,
                          [=](int64_t i, int64_t offset) { tile[i] = data[offset]; });
}

template <class Storage>
void store_tile(const StridedLayout& layout, int operand, void* base, int64_t begin, int64_t count,
                const Storage* tile) {
  auto* data = static_cast<Storage*>(base);
  detail::for_each_offset(layout, operand, begin, count,
                          [=](int64_t i, int64_t offset) { data[offset] = tile[i]; });
}

}  // namespace fused_optim::cpu
