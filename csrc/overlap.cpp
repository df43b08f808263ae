#include "overlap.h"

namespace fused_optim {

OverlapCheck::OverlapCheck(int64_t operands) {
  size_t capacity = 16;
  while (capacity < 2 * static_cast<size_t>(operands)) capacity *= 2;
  slots_.assign(capacity, nullptr);
  intervals_.reserve(operands);
}

bool OverlapCheck::insert(const void* storage) {
  const auto address = reinterpret_cast<uintptr_t>(storage);
  // Allocations are aligned to 16 bytes or more; the multiplication spreads what is left.
  const size_t mask = slots_.size() - 1;
  size_t slot = ((address >> 4) * 0x9e3779b97f4a7c15ull >> 20) & mask;
  for (; slots_[slot] != nullptr; slot = (slot + 1) & mask)
    if (slots_[slot] == storage) return false;
  slots_[slot] = storage;
  return true;
}

void OverlapCheck::add(const void* storage, const void* data, int64_t bytes, bool written) {
  if (bytes == 0) return;
  if (!insert(storage)) storage_recurred_ = true;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  intervals_.push_back({begin, begin + static_cast<uintptr_t>(bytes), written});
}

bool OverlapCheck::found() {
  if (!storage_recurred_) return false;
  std::sort(intervals_.begin(), intervals_.end(),
            [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  uintptr_t end_of_any = 0, end_of_written = 0;
  for (const Interval& interval : intervals_) {
    if (interval.begin < (interval.written ? end_of_any : end_of_written)) return true;
    end_of_any = std::max(end_of_any, interval.end);
    if (interval.written) end_of_written = std::max(end_of_written, interval.end);
  }
  return false;
}

}  // namespace fused_optim
