#include "cuda/device/arrivals.h"

#include <map>
#include <mutex>

#include "cuda/kernel_table.h"

namespace fused_optim::cuda {

uint32_t arrival_for(int64_t stream, uint64_t capture) {
  static std::mutex mutex;
  static std::map<std::pair<int64_t, uint64_t>, uint32_t> given;
  const std::lock_guard lock(mutex);
  const auto found = given.find({stream, capture});
  if (found != given.end()) return found->second;
  const auto next = static_cast<uint32_t>(given.size());
  if (next == TableHead::kArrivals) return TableHead::kNoStepsToAdvance;
  given[{stream, capture}] = next;
  return next;
}

}  // namespace fused_optim::cuda
