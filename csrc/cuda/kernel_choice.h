// From a bucket's rule, variant and dtype at run time to the kernel's type.
#pragma once

#include "../rules/registry.h"
#include "../table.h"
#include "kernel_body.h"

namespace fused_optim::cuda {

template <class Kernel>
struct KernelTag {};

template <class Rule, Variant variant, class Visit>
void with_dtype(DType dtype, Visit& visit) {
  switch (dtype) {
    case DType::Float32:
      return visit(KernelTag<StepKernel<Rule, variant, float>>{});
    case DType::Float64:
      return visit(KernelTag<StepKernel<Rule, variant, double>>{});
    case DType::BFloat16:
      return visit(KernelTag<StepKernel<Rule, variant, bfloat16>>{});
    case DType::Float16:
      return visit(KernelTag<StepKernel<Rule, variant, float16>>{});
  }
}

/// Walks the variants from `candidate` down to the states that are always on.
template <class Rule, Variant candidate, class Visit>
void with_variant(Variant variant, DType dtype, Visit& visit) {
  if constexpr ((candidate & base_variant<Rule>()) == base_variant<Rule>())
    if (variant == candidate) return with_dtype<Rule, candidate>(dtype, visit);
  if constexpr (candidate > 0) with_variant<Rule, candidate - 1>(variant, dtype, visit);
}

/// Calls visit(KernelTag<StepKernel<...>>) with the one kernel that serves these.
template <class Visit>
void with_kernel(int rule, Variant variant, DType dtype, Visit visit) {
  int index = 0;
#define FUSED_OPTIM_VISIT(Rule) \
  if (rule == index++) return with_variant<Rule, (1u << num_states<Rule>)-1>(variant, dtype, visit);
  FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_VISIT)
#undef FUSED_OPTIM_VISIT
}

}  // namespace fused_optim::cuda
