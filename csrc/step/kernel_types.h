// From a rule, its states and formats at run time to the types that a kernel is compiled for.
#pragma once

#include "rules/registry.h"
#include "step/table.h"

namespace fused_optim {

/// The rule, the states that are on, and what the kernel is compiled for beside: the type that it
/// computes in, or one format.
template <class RuleType, StateMask kStates, class ElementType>
struct KernelTypes {
  using Rule = RuleType;
  using Element = ElementType;
  static constexpr StateMask states = kStates;
};

namespace detail {

/// Walks the sets of states from `candidate` down to the states that are always on.
template <class Rule, class Element, StateMask candidate, class Visit>
void with_states(StateMask states, Visit& visit) {
  if constexpr ((candidate & states_always_on<Rule>()) == states_always_on<Rule>())
    if (states == candidate) return visit(KernelTypes<Rule, candidate, Element>{});
  if constexpr (candidate > 0) with_states<Rule, Element, candidate - 1>(states, visit);
}

}  // namespace detail

/// Calls visit(KernelTypes<...>) with the one kernel that serves these; not at all if none does.
template <class Element, class Visit>
void with_kernel_types(int rule, StateMask states, Visit visit) {
  int index = 0;
#define FUSED_OPTIM_VISIT(Rule) \
  if (rule == index++)          \
    return detail::with_states<Rule, Element, (1u << num_states<Rule>)-1>(states, visit);
  FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_VISIT)
#undef FUSED_OPTIM_VISIT
}

}  // namespace fused_optim
