// Detects memory that a step would write twice, or write and read, in tensors of different owners.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include <vector>

#include "step/table.h"

namespace fused_optim {

/// Memory that is read or written, by address.
struct Interval {
  uintptr_t begin, end;
  bool written;

  Interval(const void* data, int64_t bytes, bool is_written)
      : begin(reinterpret_cast<uintptr_t>(data)),
        end(begin + static_cast<uintptr_t>(bytes)),
        written(is_written) {}
};

/// Whether anything written lies in anything else of it.
bool do_overlap(std::vector<Interval> intervals);

/// The memory of a tensor of any strides that is written, run by run of neighbouring elements.
void add_runs(const c10::TensorImpl& tensor, std::vector<Interval>& intervals);

/// The memory of all operands of the table.
std::vector<Interval> intervals_of(const TensorTable& table);

/// Remembers each operand's storage. Storages that torch allocated are apart from each other, so
/// that distinct ones can't overlap, which is nearly always all there is to know. Where one recurs,
/// or memory came from elsewhere (NumPy), intervals have to be compared.
class StorageCheck {
 public:
  /// Room for about so many operands.
  explicit StorageCheck(int64_t operands);

  void add(const c10::StorageImpl& storage);

  /// A parameter without elements, or a state dict to be filled: no memory of it shows that it is
  /// there twice.
  void add_owner(const void* owner);

  bool may_overlap() const { return may_overlap_; }
  bool is_owner_repeated() const { return is_owner_repeated_; }

 private:
  /// Whether it is there for the second time.
  bool recurs(const void* address);
  /// Where it is, or belongs.
  const void** slot_of(const void* address);
  void grow();
  bool is_allocated_by_torch(const c10::StorageImpl& storage);

  std::vector<const void*> slots_;  // an open-addressing hash set, at most half full
  size_t num_used_ = 0;
  c10::DeleterFnPtr deleters_[2] = {};  // of torch's allocators, by DeviceKind
  bool may_overlap_ = false;
  bool is_owner_repeated_ = false;
};

}  // namespace fused_optim
