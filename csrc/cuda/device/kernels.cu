// The kernels: the body from kernel_body.h, and the step counters once every block is through.
#include <cuda_runtime.h>

#include "cuda/device/kernels.h"
#include "cuda/kernel_body.h"
#include "step/kernel_types.h"

namespace fused_optim::cuda {
namespace {

/// Blocks that are through with their launch, by TableHead::arrival. atomicInc wraps, so that
/// each launch leaves zero behind.
__device__ unsigned int arrived[TableHead::kArrivals];

/// Whether this block is the last one to get here. All blocks have then read what they read.
__device__ bool is_last_block(uint32_t arrival) {
  __shared__ bool is_last;
  __syncthreads();
  if (threadIdx.x == 0) {
    // What this block has read and written comes before its arrival, what the last one does after.
    __threadfence();
    is_last = atomicInc(&arrived[arrival], gridDim.x - 1) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  return is_last;
}

/// The table by an address of which the compiler doesn't know that it is an argument's: it is then
/// read as memory is, which serves each thread another word at a time. Constant memory, where
/// arguments lie, serves one word after the other.
template <class Table>
__device__ TableView view_as_memory(const Table& table) {
  const Table* address = &table;
  asm volatile("" : "+l"(address));
  return TableView(*address);
}

/// Two blocks to a multiprocessor: with all loads of an iteration in flight at a time, that is
/// enough to keep the fastest memory busy.
template <class Rule, StateMask states, class Element, class Table>
__global__ void __launch_bounds__(kThreads, 2) step_kernel_of(const __grid_constant__ Table table) {
  using Kernel = StepKernel<Rule, states, Element>;
  __shared__ typename Kernel::Scalars scalars;
  Kernel::run(DeviceBlock{blockIdx.x, threadIdx.x, gridDim.x, kThreads}, TableView(table), scalars);
  const uint32_t arrival = table.head.arrival;
  if (arrival == TableHead::kNoStepsToAdvance) return;
  if (arrival == TableHead::kAllArrived || is_last_block(arrival))
    Kernel::advance_steps(threadIdx.x, kThreads, view_as_memory(table));
}

}  // namespace

template <class Table>
const void* step_kernel(int rule, StateMask states, KernelKind kind, Format format) {
  const void* kernel = nullptr;
  with_element(kind, format, [&]<class Element>(Element) {
    with_kernel_types<Element>(rule, states, [&]<class Types>(Types) {
      kernel = reinterpret_cast<const void*>(
          &step_kernel_of<typename Types::Rule, Types::states, Element, Table>);
    });
  });
  return kernel;
}
template const void* step_kernel<SmallKernelTable>(int, StateMask, KernelKind, Format);
template const void* step_kernel<KernelTable>(int, StateMask, KernelKind, Format);

const int kCompiledArchs[] = {__CUDA_ARCH_LIST__};
const int kNumCompiledArchs = sizeof(kCompiledArchs) / sizeof(int);

}  // namespace fused_optim::cuda
