// From rule, states and dtype at run time to the types that a kernel is compiled for.
#pragma once

#include "rules/registry.h"
#include "step/table.h"
#include "storage/dtype.h"

namespace fused_optim {

template <class RuleType, StateMask kVariant, class StorageType>
struct KernelTypes {
  using Rule = RuleType;
  using Storage = StorageType;
  static constexpr StateMask states = kVariant;
};

namespace detail {

/// Walks the sets of states from `candidate` down to the states that are always on.
template <class Rule, StateMask candidate, class Visit>
void with_states(StateMask states, DType dtype, Visit& visit) {
  if constexpr ((candidate & states_always_on<Rule>()) == states_always_on<Rule>())
    if (states == candidate)
      return with_storage(
          dtype, [&]<class Storage>(Storage) { visit(KernelTypes<Rule, candidate, Storage>{}); });
  if constexpr (candidate > 0) with_states<Rule, candidate - 1>(states, dtype, visit);
}

}  // namespace detail

/// Calls visit(KernelTypes<...>) with the one instance that serves these; not at all if none does.
template <class Visit>
void with_kernel_types(int rule, StateMask states, DType dtype, Visit visit) {
  int index = 0;
#define FUSED_OPTIM_VISIT(Rule) \
  if (rule == index++)          \
    return detail::with_states<Rule, (1u << num_states<Rule>)-1>(states, dtype, visit);
  FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_VISIT)
#undef FUSED_OPTIM_VISIT
}

}  // namespace fused_optim
