#include "run/launch.h"

#include "cpu/apply.h"
#include "cuda/engine.h"

namespace fused_optim {
namespace {

bool same_bucket(const TensorEntry& a, const TensorEntry& b, BucketsOf kind) {
  if (a.mask != b.mask || !(a.device == b.device) || a.is_averaged() != b.is_averaged() ||
      a.is_double() != b.is_double())
    return false;
  // On the CPU each tensor finds its own way through one kernel.
  if (a.device.kind == DeviceKind::CPU && kind == BucketsOf::EachDevice) return true;
  return a.kernel_kind() == b.kernel_kind() &&
         (a.kernel_kind() != KernelKind::Uniform || a.formats[kParam] == b.formats[kParam]);
}

}  // namespace

void for_each_bucket(const TensorTable& table, BucketsOf kind,
                     const std::function<void(const Bucket&)>& apply) {
  std::vector<const TensorEntry*> waiting, bucket, others;
  std::vector<int64_t> ends;
  waiting.reserve(table.entries.size());
  for (const TensorEntry& entry : table.entries)
    if (entry.numel > 0 || advances_on_device(table, entry)) waiting.push_back(&entry);

  while (!waiting.empty()) {
    bucket.clear();
    others.clear();
    ends.clear();
    int64_t total = 0;
    for (const TensorEntry* entry : waiting) {
      if (!same_bucket(*entry, *waiting.front(), kind)) {
        others.push_back(entry);
        continue;
      }
      bucket.push_back(entry);
      ends.push_back(total += entry->numel);
    }
    apply({&table, bucket.data(), ends.data(), static_cast<int64_t>(bucket.size())});
    waiting.swap(others);
  }
}

void prepare(const TensorTable& table) {
  const TensorEntry* last = nullptr;
  for (const TensorEntry& entry : table.entries) {
    if (entry.device.kind != DeviceKind::CUDA) continue;
    if (last == nullptr || !same_bucket(*last, entry, BucketsOf::EachDevice))
      cuda::prepare(table.rule, entry);
    last = &entry;
  }
}

void launch(const TensorTable& table) {
  for_each_bucket(table, BucketsOf::EachDevice, [](const Bucket& bucket) {
    if (bucket.first().device.kind == DeviceKind::CUDA)
      cuda::apply(bucket);
    else
      cpu::apply(bucket);
  });
}

}  // namespace fused_optim
