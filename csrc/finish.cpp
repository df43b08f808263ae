#include "finish.h"

#include <c10/core/GradMode.h>

namespace fused_optim {

void finish(const Gathered& gathered) {
  const at::NoGradGuard no_grad;
  for (const auto& [average, param] : gathered.begun) average.copy_(param);
  for (const auto& [average, param] : gathered.idle)
    average.lerp_(param, gathered.table.ema_weight);
  if (gathered.table.zero_grads)
    for (const at::Tensor& grad : gathered.copied_grads) grad.zero_();
}

void finish_skipped(const Gathered& gathered) {
  const at::NoGradGuard no_grad;
  if (!gathered.table.zero_grads) return;
  for (c10::TensorImpl* grad : gathered.read)
    at::Tensor(c10::intrusive_ptr<c10::TensorImpl>::unsafe_reclaim_from_nonowning(grad)).zero_();
}

}  // namespace fused_optim
