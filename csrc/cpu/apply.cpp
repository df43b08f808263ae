#include "cpu/apply.h"

#include <stdexcept>

#include "cpu/kernels.h"
#include "cpu/parallel.h"

namespace fused_optim::cpu {
namespace {

struct Launch {
  const Bucket* bucket;
  Kernel kernel;
};

void run_range(const void* context, int64_t begin, int64_t end) {
  const auto& launch = *static_cast<const Launch*>(context);
  launch.kernel(*launch.bucket, begin, end);
}

}  // namespace

void apply(const Bucket& bucket) {
  const TensorEntry& first = bucket.first();
  const Launch launch{
      &bucket, find_kernel(current_isa(), bucket.table->rule, first.mask, first.is_double())};
  if (launch.kernel == nullptr) throw std::logic_error("fused_optim: no kernel for this bucket");
  parallel_ranges(bucket.numel(), run_range, &launch);
}

}  // namespace fused_optim::cpu
