// Detects memory that a step would write twice, or write and read, in tensors of different owners.
#pragma once

#include <cstdint>
#include <vector>

#include "table.h"

namespace fused_optim {

/// Remembers each operand's storage. Tensors of distinct storages cannot overlap, which is nearly
/// always all there is to know; where a storage recurs, the intervals themselves are compared.
class OverlapCheck {
 public:
  /// Room for that many operands, without growing.
  explicit OverlapCheck(int64_t operands);

  void add(const void* storage, const void* data, int64_t bytes, bool written);

  /// Whether anything written overlaps anything else. Sorts only if a storage recurred.
  bool found();

 private:
  struct Interval {
    uintptr_t begin, end;
    bool written;
  };
  bool insert(const void* storage);

  std::vector<const void*> slots_;  // an open-addressing hash set, at most half full
  std::vector<Interval> intervals_;
  bool storage_recurred_ = false;
};

}  // namespace fused_optim
