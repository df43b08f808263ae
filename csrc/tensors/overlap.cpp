#include "tensors/overlap.h"

#include <algorithm>
#include <set>
#include <utility>

#include "rules/registry.h"
#include "tensors/checks.h"
#include "tensors/layout.h"

namespace fused_optim {
namespace {

int64_t span_of(const TensorTable& table, const TensorEntry& entry, int operand) {
  if (entry.strided < 0) return entry.numel;
  const StridedLayout& layout = table.strided[entry.strided];
  const std::vector<int64_t>& strides = layout.strides[operand];
  if (strides.empty()) return entry.numel;
  int64_t last = 0;
  for (size_t dim = 0; dim < strides.size(); ++dim) last += (layout.sizes[dim] - 1) * strides[dim];
  return last + 1;
}

}  // namespace

std::vector<Interval> intervals_of(const TensorTable& table) {
  std::vector<Interval> intervals;
  const auto add = [&](const void* data, int64_t bytes, bool written) {
    intervals.emplace_back(data, bytes, written);
  };
  // A step that parameters share is advanced once for each, one after the other: no overlap.
  std::set<std::pair<const void*, Format>> steps;
  const auto add_one_element = [&](const OneElementState& state, bool is_step) {
    const bool is_host_step = is_step && !state.is_on_device;
    if (!is_host_step || steps.emplace(state.data, state.format).second)
      add(state.data, item_size(state.format), true);
  };
  for (const TensorEntry& entry : table.entries) {
    const OneElementState* states = table.one_element_states_of(entry);
    for (int i = 0; i < table.num_one_element; ++i)
      add_one_element(states[i], i == 0 && kRules[table.rule].has_step);
    if (entry.is_compact() && table.compact[entry.compact].counter.data != nullptr)
      add_one_element(table.compact[entry.compact].counter, true);
    for (int operand = 0; operand < kMaxOperands; ++operand) {
      if (entry.operands[operand] == nullptr || entry.numel == 0) continue;
      const int64_t bytes = span_of(table, entry, operand) * item_size(entry.formats[operand]);
      add(entry.operands[operand], bytes, operand != kGrad || table.zero_grads);
    }
  }
  return intervals;
}

StorageCheck::StorageCheck(int64_t operands) {
  size_t capacity = 16;
  while (capacity < 2 * static_cast<size_t>(operands)) capacity *= 2;
  slots_.assign(capacity, nullptr);
}

void add_runs(const c10::TensorImpl& tensor, std::vector<Interval>& intervals) {
  const auto item = static_cast<int64_t>(tensor.dtype().itemsize());
  const char* first = static_cast<const char*>(first_element(tensor));
  if (tensor.numel() == 0) return;
  if (tensor.is_non_overlapping_and_dense()) {
    intervals.emplace_back(first, tensor.numel() * item, true);
    return;
  }
  std::vector<Dimension> dims = dims_by_stride(tensor);
  int64_t run = 1, runs = 1;
  if (!dims.empty() && dims[0].stride == 1) {
    run = dims[0].size;
    dims.erase(dims.begin());
  }
  for (const Dimension& dim : dims) runs *= dim.size;
  for (int64_t i = 0; i < runs; ++i) {
    int64_t offset = 0, rest = i;
    for (const Dimension& dim : dims) {
      offset += rest % dim.size * dim.stride;
      rest /= dim.size;
    }
    intervals.emplace_back(first + offset * item, run * item, true);
  }
}

bool do_overlap(std::vector<Interval> intervals) {
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

const void** StorageCheck::slot_of(const void* address) {
  // Allocations are aligned to 16 bytes or more; the multiplication spreads what is left.
  const uint64_t hash = (reinterpret_cast<uintptr_t>(address) >> 4) * 0x9e3779b97f4a7c15ull;
  const size_t mask = slots_.size() - 1;
  size_t slot = (hash >> 32) & mask;
  while (slots_[slot] != nullptr && slots_[slot] != address) slot = (slot + 1) & mask;
  return &slots_[slot];
}

bool StorageCheck::recurs(const void* address) {
  const void** slot = slot_of(address);
  if (*slot != nullptr) return true;
  *slot = address;
  if (2 * ++num_used_ > slots_.size()) grow();
  return false;
}

void StorageCheck::grow() {
  std::vector<const void*> before(2 * slots_.size(), nullptr);
  before.swap(slots_);
  for (const void* address : before)
    if (address != nullptr) *slot_of(address) = address;
}

bool StorageCheck::is_allocated_by_torch(const c10::StorageImpl& storage) {
  const bool is_cpu = storage.device_type() == c10::DeviceType::CPU;
  auto& deleter = deleters_[static_cast<int>(is_cpu ? DeviceKind::CPU : DeviceKind::CUDA)];
  if (deleter == nullptr) deleter = c10::GetAllocator(storage.device_type())->raw_deleter();
  return storage.data_ptr().get_deleter() == deleter;
}

void StorageCheck::add(const c10::StorageImpl& storage) {
  may_overlap_ = may_overlap_ || !is_allocated_by_torch(storage) || recurs(storage.data());
}

void StorageCheck::add_owner(const void* owner) {
  is_owner_repeated_ = is_owner_repeated_ || recurs(owner);
}

}  // namespace fused_optim
