// A rule's one-element states, in whatever dtype they are stored: read, advanced and written.
#pragma once

#include "rules/rule.h"
#include "storage/one_element.h"

namespace fused_optim {

namespace detail {

template <class Rule, class Storage>
FUSED_OPTIM_INLINE void advance(const typename Rule::Hyperparameters& hyperparameters, double step,
                                OneElementValues& values) {
  using S = opmath_t<Storage>;
  S states[num_one_element_states<Rule>];
  FUSED_OPTIM_UNROLL
  for (int i = 0; i < num_one_element_states<Rule>; ++i)
    states[i] = static_cast<S>(values.before[i]);
  Rule::template advance<S>(hyperparameters, step, states);
  FUSED_OPTIM_UNROLL
  for (int i = 0; i < num_one_element_states<Rule>; ++i)
    values.after[i] = to_opmath(to_storage<Storage>(states[i]));
}

}  // namespace detail

/// From the values before the step to those after it, as a tensor of this format holds them.
template <class Rule>
FUSED_OPTIM_INLINE void advance_one_element_states(
    const typename Rule::Hyperparameters& hyperparameters, double step, Format format,
    OneElementValues& values) {
  with_storage(format, [&]<class Storage>(Storage) {
    detail::advance<Rule, Storage>(hyperparameters, step, values);
  });
}

/// Rule::scalars, whether the rule has scalar states or not.
template <class Rule, class T>
FUSED_OPTIM_INLINE typename Rule::template Scalars<T> scalars_of(
    const typename Rule::Hyperparameters& hyperparameters, double step,
    const OneElementValues& values) {
  if constexpr (num_one_element_states<Rule> > 0)
    return Rule::template scalars<T>(hyperparameters, step, values.before, values.after);
  else
    return Rule::template scalars<T>(hyperparameters, step);
}

}  // namespace fused_optim
