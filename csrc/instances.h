// From rule, variant and dtype at run time to the types that a kernel is compiled for.
#pragma once

#include "rules/registry.h"
#include "table.h"

namespace fused_optim {

template <class RuleType, Variant kVariant, class StorageType>
struct Instance {
  using Rule = RuleType;
  using Storage = StorageType;
  static constexpr Variant variant = kVariant;
};

namespace detail {

/// Walks the variants from `candidate` down to the states that are always on.
template <class Rule, Variant candidate, class Visit>
void with_variant(Variant variant, DType dtype, Visit& visit) {
  if constexpr ((candidate & base_variant<Rule>()) == base_variant<Rule>())
    if (variant == candidate)
      return with_storage(
          dtype, [&]<class Storage>(Storage) { visit(Instance<Rule, candidate, Storage>{}); });
  if constexpr (candidate > 0) with_variant<Rule, candidate - 1>(variant, dtype, visit);
}

}  // namespace detail

/// Calls visit(Instance<...>) with the one instance that serves these; not at all if none does.
template <class Visit>
void with_instance(int rule, Variant variant, DType dtype, Visit visit) {
  int index = 0;
#define FUSED_OPTIM_VISIT(Rule) \
  if (rule == index++)          \
    return detail::with_variant<Rule, (1u << num_states<Rule>)-1>(variant, dtype, visit);
  FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_VISIT)
#undef FUSED_OPTIM_VISIT
}

}  // namespace fused_optim
