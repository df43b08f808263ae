#include "host_run.h"

#include <stdexcept>

#include "../instances.h"
#include "kernel_body.h"

namespace fused_optim::cuda {
namespace {

template <class Kernel>
void run_table(const KernelTable& table, uint32_t blocks, uint32_t threads) {
  for (uint32_t block = 0; block < blocks; ++block)
    for (uint32_t thread = 0; thread < threads; ++thread)
      Kernel::run({block, thread, blocks, threads}, table);
  for (uint32_t thread = 0; thread < threads; ++thread)
    Kernel::advance_steps(thread, threads, table);
}

using RunTable = void (*)(const KernelTable&, uint32_t, uint32_t);

}  // namespace

int run_on_host(const Bucket& bucket, const AmpPointers& amp, uint32_t blocks, uint32_t threads) {
  RunTable run = nullptr;
  with_instance(bucket.table->rule, bucket.first().variant, bucket.first().dtype, [&]<class I>(I) {
    run = run_table<StepKernel<typename I::Rule, I::variant, typename I::Storage>>;
  });
  if (run == nullptr) throw std::logic_error("fused_optim: no kernel for this bucket");
  const std::vector<KernelTable> tables = pack(bucket, amp);
  for (const KernelTable& table : tables) run(table, blocks, threads);
  return static_cast<int>(tables.size());
}

}  // namespace fused_optim::cuda
