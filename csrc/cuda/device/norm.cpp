// Launches for norms and scaling, on each device's current stream.
#include "cuda/norm.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "cuda/device/launching.h"
#include "cuda/device/norm_kernels.h"
#include "cuda/fill_gradient_tables.h"

namespace fused_optim::cuda {
namespace {

struct NormKernelName {
  const char* what;
  Device device;

  std::string text() const {
    return std::string(what) + " on cuda:" + std::to_string(device.index);
  }
};

void launch(const void* kernel, uint32_t blocks, void** arguments, const NormKernelName& name) {
  check(cudaLaunchKernel(kernel, dim3(blocks), dim3(kNormColumns), arguments, 0,
                         c10::cuda::getCurrentCUDAStream(name.device.index)),
        "launching", name);
}

template <class Table>
void launch(const void* kernel, Table& table, const NormKernelName& name) {
  void* arguments[] = {&table};
  launch(kernel, std::min(table.head.num_chunks, max_blocks(kernel, kNormColumns, name)), arguments,
         name);
}

}  // namespace

void sum_chunks(const Gradients& gradients, Device device, NormType type, double* sums) {
  const c10::cuda::CUDAGuard guard(device.index);
  for (GradientLaunch& next : fill_gradient_tables(gradients, device)) {
    next.head.sums = sums;
    next.as_argument([&]<class Table>(Table& table) {
      launch(sum_kernel<Table>(type, next.dtype), table, {"norm", device});
    });
  }
}

void finish_norm(const double* sums, int64_t count, NormType type, Device device,
                 const ClipAndSkip& rule) {
  const c10::cuda::CUDAGuard guard(device.index);
  void* arguments[] = {&sums, &count, const_cast<ClipAndSkip*>(&rule)};
  launch(finish_norm_kernel(type), 1, arguments, {"norm", device});
}

void scale(const Gradients& gradients, Device device, const double* norm, double max_norm) {
  const c10::cuda::CUDAGuard guard(device.index);
  for (GradientLaunch& next : fill_gradient_tables(gradients, device)) {
    next.head.norm = norm;
    next.head.max_norm = max_norm;
    next.as_argument([&]<class Table>(Table& table) {
      launch(scale_kernel<Table>(next.dtype), table, {"scale", device});
    });
  }
}

}  // namespace fused_optim::cuda
