// The kernels for norms and scaling: the bodies from norm_body.h, and the addition within a block.
#include <cuda_runtime.h>

#include "cuda/device/norm_kernels.h"
#include "cuda/norm_body.h"
#include "reduce/clip_and_skip.h"

namespace fused_optim::cuda {
namespace {

/// The sum of these elements, for thread 0. Not CUB's reduction, whose order is its own: this one
/// is the CPU's to the last bit.
template <NormType type, class Storage>
__device__ double sum_block(const Storage* x, int64_t count) {
  using Kernel = SumKernel<type, Storage>;
  __shared__ double columns[kNormColumns];
  columns[threadIdx.x] = Kernel::sum_column(threadIdx.x, x, count);
  for (uint32_t half = kNormColumns / 2; half > 0; half /= 2) {
    __syncthreads();
    Kernel::add_columns(columns, threadIdx.x, half);
  }
  __syncthreads();
  const double sum = columns[0];
  __syncthreads();  // before the next sum's columns are written
  return sum;
}

template <NormType type, class Storage, class Table>
__global__ void __launch_bounds__(kNormColumns) sum_kernel_of(const __grid_constant__ Table table) {
  for (uint32_t chunk = blockIdx.x; chunk < table.head.num_chunks; chunk += gridDim.x)
    SumKernel<type, Storage>::sum_chunk(GradientTableView(table), chunk, sum_block<type, Storage>,
                                        threadIdx.x == 0);
}

template <NormType type>
__global__ void __launch_bounds__(kNormColumns)
    finish_norm_kernel_of(const double* sums, int64_t count, const ClipAndSkip rule) {
  const double sum = sum_block<type_of_sums(type), double>(sums, count);
  if (threadIdx.x == 0) rule.decide(norm_of_sum(type, sum));
}

template <class Storage, class Table>
__global__ void __launch_bounds__(kNormColumns)
    scale_kernel_of(const __grid_constant__ Table table) {
  ScaleKernel<Storage>::run(blockIdx.x, threadIdx.x, gridDim.x, blockDim.x,
                            GradientTableView(table));
}

template <class Kernel>
const void* address(Kernel* kernel) {
  return reinterpret_cast<const void*>(kernel);
}

}  // namespace

template <class Table>
const void* sum_kernel(NormType type, Format dtype) {
  return with_norm_type(type, [&]<NormType kType>(std::integral_constant<NormType, kType>) {
    return with_storage(dtype, []<class Storage>(Storage) {
      return address(&sum_kernel_of<kType, Storage, Table>);
    });
  });
}
template const void* sum_kernel<SmallGradientTable>(NormType, Format);
template const void* sum_kernel<GradientTable>(NormType, Format);

template <class Table>
const void* scale_kernel(Format dtype) {
  return with_storage(
      dtype, []<class Storage>(Storage) { return address(&scale_kernel_of<Storage, Table>); });
}
template const void* scale_kernel<SmallGradientTable>(Format);
template const void* scale_kernel<GradientTable>(Format);

const void* finish_norm_kernel(NormType type) {
  return with_norm_type(type, []<NormType kType>(std::integral_constant<NormType, kType>) {
    return address(&finish_norm_kernel_of<kType>);
  });
}

}  // namespace fused_optim::cuda
