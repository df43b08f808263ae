#include "overlap.h"

#include "rules/registry.h"

namespace fused_optim {
namespace {

struct Interval {
  uintptr_t begin, end;
  bool written;
};

int64_t span_of(const TensorTable& table, const TensorEntry& entry, int operand) {
  if (entry.strided < 0) return entry.numel;
  const StridedLayout& layout = table.strided[entry.strided];
  const std::vector<int64_t>& strides = layout.strides[operand];
  if (strides.empty()) return entry.numel;
  int64_t last = 0;
  for (size_t dim = 0; dim < strides.size(); ++dim) last += (layout.sizes[dim] - 1) * strides[dim];
  return last + 1;
}

std::vector<Interval> intervals_of(const TensorTable& table) {
  std::vector<Interval> intervals;
  const auto add = [&](const void* data, int64_t bytes, bool written) {
    const auto begin = reinterpret_cast<uintptr_t>(data);
    intervals.push_back({begin, begin + static_cast<uintptr_t>(bytes), written});
  };
  for (const TensorEntry& entry : table.entries) {
    if (entry.device_step != nullptr) add(entry.device_step, sizeof(float), true);
    for (int i = 0; i < kRules[table.rule].num_scalar_states; ++i) {
      const ScalarStates& states = *table.scalar_states_of(entry);
      add(states.data[i], item_size(states.dtype), true);
    }
    for (int operand = 0; operand < kMaxOperands; ++operand) {
      if (entry.operands[operand] == nullptr || entry.numel == 0) continue;
      const int64_t bytes = span_of(table, entry, operand) * item_size(entry.dtype);
      add(entry.operands[operand], bytes, operand != kGrad || table.zero_grads);
    }
  }
  return intervals;
}

}  // namespace

OverlapCheck::OverlapCheck(int64_t operands) {
  size_t capacity = 16;
  while (capacity < 2 * static_cast<size_t>(operands)) capacity *= 2;
  slots_.assign(capacity, nullptr);
}

void OverlapCheck::add(const void* storage) {
  if (storage_recurred_) return;
  // Allocations are aligned to 16 bytes or more; the multiplication spreads what is left.
  const uint64_t hash = (reinterpret_cast<uintptr_t>(storage) >> 4) * 0x9e3779b97f4a7c15ull;
  const size_t mask = slots_.size() - 1;
  size_t slot = (hash >> 32) & mask;
  for (; slots_[slot] != nullptr; slot = (slot + 1) & mask)
    if (slots_[slot] == storage) {
      storage_recurred_ = true;
      return;
    }
  slots_[slot] = storage;
}

bool OverlapCheck::found(const TensorTable& table) const {
  if (!storage_recurred_) return false;
  std::vector<Interval> intervals = intervals_of(table);
  std::sort(intervals.begin(), intervals.end(),
            [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  uintptr_t end_of_any = 0, end_of_written = 0;
  for (const Interval& interval : intervals) {
    if (interval.begin < (interval.written ? end_of_any : end_of_written)) return true;
    end_of_any = std::max(end_of_any, interval.end);
    if (interval.written) end_of_written = std::max(end_of_written, interval.end);
  }
  return false;
}

}  // namespace fused_optim
