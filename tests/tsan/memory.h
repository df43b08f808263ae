// Memory of tensors: sizes, contents, comparison.
#pragma once

#include <cstdint>
#include <vector>

#include "storage/registry.h"

namespace fused_optim::tsan {

struct Shape {
  int64_t rows, columns;

  int64_t numel() const { return rows * columns; }
};

/// Enough elements for three threads: small tensors, of which a range has many, and large ones,
/// which go over many ranges. No size divides another.
inline std::vector<Shape> ragged_shapes() {
  std::vector<Shape> shapes;
  for (int64_t i = 0; i < 300; ++i) shapes.push_back({1 + i % 7, 1 + i * 37 % 97});
  shapes.push_back({181, 187});
  shapes.push_back({1, 18'001});
  return shapes;
}

using Bytes = std::vector<char>;

/// `count` numbers from -1 to 1, the same for the same seed.
inline void fill_random(void* data, int64_t count, Format dtype, uint32_t seed) {
  with_storage(dtype, [&]<class Storage>(Storage) {
    uint32_t random = seed * 2'654'435'761u + 1;
    for (int64_t i = 0; i < count; ++i) {
      random = random * 1'664'525u + 1'013'904'223u;
      const auto value = static_cast<opmath_t<Storage>>(static_cast<int32_t>(random) * 0x1p-31);
      static_cast<Storage*>(data)[i] = to_storage<Storage>(value);
    }
  });
}

inline void fill(void* data, int64_t count, Format dtype, double value) {
  with_storage(dtype, [&]<class Storage>(Storage) {
    const auto stored = to_storage<Storage>(static_cast<opmath_t<Storage>>(value));
    for (int64_t i = 0; i < count; ++i) static_cast<Storage*>(data)[i] = stored;
  });
}

}  // namespace fused_optim::tsan
