// The compiled kernels, by rule, states and format.
#pragma once

#include "step/table.h"

namespace fused_optim::cuda {

/// `format`: of all operands where they are uniform, else of the parameter.
/// What cudaLaunchKernel takes: a kernel whose one argument is `Table`, a KernelTable or a
/// SmallKernelTable. nullptr where no kernel serves these.
template <class Table>
const void* step_kernel(int rule, StateMask states, KernelKind kind, Format format);

/// The value of nvcc's __CUDA_ARCH_LIST__.
extern const int kCompiledArchs[];
extern const int kNumCompiledArchs;

}  // namespace fused_optim::cuda
