// The compiled kernels for norms and scaling.
#pragma once

#include "reduce/norm.h"

namespace fused_optim::cuda {

/// What cudaLaunchKernel takes: kernels of kNormColumns threads whose one argument is `Table`, a
/// GradientTable or a SmallGradientTable.
template <class Table>
const void* sum_kernel(NormType type, Format dtype);
template <class Table>
const void* scale_kernel(Format dtype);

/// One block; arguments: the sums (const double*), their number (int64_t), the ClipAndSkip.
const void* finish_norm_kernel(NormType type);

}  // namespace fused_optim::cuda
