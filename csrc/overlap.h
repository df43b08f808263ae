// Detects memory that a step would write twice, or write and read, in tensors of different owners.
#pragma once

#include <vector>

#include "table.h"

namespace fused_optim {

/// Remembers each operand's storage. Tensors of distinct storages cannot overlap, which is nearly
/// always all there is to know; where a storage recurs, the operands' intervals are compared.
class OverlapCheck {
 public:
  /// Room for that many operands.
  explicit OverlapCheck(int64_t operands);

  /// `storage`: the address at which the operand's storage begins.
  void add(const void* storage);

  /// Whether anything that the step writes overlaps anything else of it.
  bool found(const TensorTable& table) const;

 private:
  std::vector<const void*> slots_;  // an open-addressing hash set, at most half full
  bool storage_recurred_ = false;
};

}  // namespace fused_optim
