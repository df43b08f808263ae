// The kernels: the body from kernel_body.h, and the step counters once every block is through.
#include <cuda_runtime.h>

#include "../../instances.h"
#include "../kernel_body.h"
#include "kernels.h"

namespace fused_optim::cuda {
namespace {

/// Blocks that are through with their launch, by KernelTable::arrival. atomicInc wraps, so that
/// each launch leaves zero behind.
__device__ unsigned int arrived[KernelTable::kArrivals];

/// Whether this block is the last one to get here. All blocks have then read what they read.
__device__ bool is_last_block(uint32_t arrival) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    is_last = atomicInc(&arrived[arrival], gridDim.x - 1) == gridDim.x - 1;
  }
  __syncthreads();
  return is_last;
}

/// One block to an SM is all that is asked for: its registers keep more loads in flight than
/// more threads would.
template <class Rule, Variant variant, class Storage>
__global__ void __launch_bounds__(kThreads, 1)
    step_kernel_of(const __grid_constant__ KernelTable table) {
  using Kernel = StepKernel<Rule, variant, Storage>;
  Kernel::run({blockIdx.x, threadIdx.x, gridDim.x, blockDim.x}, table);
  if (table.arrival == KernelTable::kNoStepsToAdvance) return;
  if (table.arrival == KernelTable::kAllArrived || is_last_block(table.arrival))
    Kernel::advance_steps(threadIdx.x, blockDim.x, table);
}

}  // namespace

const void* step_kernel(int rule, Variant variant, DType dtype) {
  const void* kernel = nullptr;
  with_instance(rule, variant, dtype, [&]<class I>(I) {
    kernel = reinterpret_cast<const void*>(
        &step_kernel_of<typename I::Rule, I::variant, typename I::Storage>);
  });
  return kernel;
}

const int kCompiledArchs[] = {__CUDA_ARCH_LIST__};
const int kNumCompiledArchs = sizeof(kCompiledArchs) / sizeof(int);

}  // namespace fused_optim::cuda
