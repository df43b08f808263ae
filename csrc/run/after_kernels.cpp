#include "run/after_kernels.h"

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "cpu/parallel.h"
#include "gather/python_tensor.h"
#include "tensors/layout.h"

namespace fused_optim {
namespace {

struct AverageLaunch {
  at::Tensor average, param;  // of one dimension
  double weight;
};

/// Of two dtypes in the wider one, rounded once.
void move_values(const at::Tensor& average, const at::Tensor& param, double weight) {
  if (average.dtype() == param.dtype()) {
    average.lerp_(param, weight);
    return;
  }
  const at::ScalarType least = average.is_complex() ? at::kComplexFloat : at::kFloat;
  const at::ScalarType wide =
      c10::promoteTypes(c10::promoteTypes(average.scalar_type(), param.scalar_type()), least);
  at::Tensor values = average.to(wide, /*non_blocking=*/false, /*copy=*/true);
  average.copy_(values.lerp_(param.to(wide), weight));
}

void move_range(const void* context, int64_t begin, int64_t end) {
  const auto& [average, param, weight] = *static_cast<const AverageLaunch*>(context);
  const at::NoGradGuard no_grad;
  constexpr int64_t kSerial = 1 << 14;  // below it torch enters no parallel region of its own
  for (; begin < end; begin += kSerial) {
    const int64_t size = std::min(kSerial, end - begin);
    move_values(average.narrow(0, begin, size), param.narrow(0, begin, size), weight);
  }
}

/// On the CPU in the step's own parallel region: its threads have the caller's floating-point mode.
void move_average(const at::Tensor& average, const at::Tensor& param, double weight) {
  const bool are_dense = average.is_non_overlapping_and_dense() &&
                         param.is_non_overlapping_and_dense() &&
                         same_layout(*average.unsafeGetTensorImpl(), *param.unsafeGetTensorImpl());
  if (!average.is_cpu() || !are_dense) {
    move_values(average, param, weight);
    return;
  }
  const int64_t numel = average.numel();
  const AverageLaunch launch{average.as_strided({numel}, {1}), param.as_strided({numel}, {1}),
                             weight};
  cpu::parallel_ranges(numel, move_range, &launch);
}

}  // namespace

void after_kernels(const Gathered& gathered) {
  const at::NoGradGuard no_grad;
  for (const Averaged& first : gathered.first_averages) first.average.copy_(first.values());
  for (const Averaged& alone : gathered.averages_alone)
    move_average(alone.average, alone.values(), gathered.table.ema_weight);
  if (gathered.table.zero_grads)
    for (const at::Tensor& grad : gathered.copied_grads) grad.zero_();
}

void after_skipping(const Gathered& gathered) {
  const at::NoGradGuard no_grad;
  if (!gathered.table.zero_grads) return;
  for (const Wrapper& wrapper : gathered.wrappers)
    if (wrapper.is_grad) unpack(wrapper.object).unsafeGetTensorImpl()->bump_version();
  for (c10::TensorImpl* grad : gathered.read)
    at::Tensor(c10::intrusive_ptr<c10::TensorImpl>::unsafe_reclaim_from_nonowning(grad)).zero_();
}

}  // namespace fused_optim
