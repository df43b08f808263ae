// One element's step, and where its operands' values are.
#pragma once

#include "rules/rule.h"
#include "step/operands.h"

namespace fused_optim::cuda {

constexpr int count_states(StateMask states) {
  int count = 0;
  for (; states != 0; states >>= 1) count += states & 1u;
  return count;
}

/// Operands of an entry: the parameter, the gradient and the states that are on.
template <StateMask states>
constexpr int kOperandsWith = kFirstState + count_states(states);

/// A state's place among the operands that are there.
template <StateMask states>
constexpr int place_of(int state) {
  return kFirstState + count_states(states & ((1u << state) - 1u));
}

/// Its operands' values before, then after. `scalars`: EntryScalars::Values.
template <class Rule, StateMask states, class T, class Scalars>
FUSED_OPTIM_INLINE void step_element(T (&values)[kOperandsWith<states>], const Scalars& scalars) {
  constexpr int kStates = num_states<Rule>;
  T state[kStates] = {};
  FUSED_OPTIM_UNROLL
  for (int i = 0; i < kStates; ++i)
    if (has_state(states, i)) state[i] = values[place_of<states>(i)];
  Rule::template update<states, T>(values[kParam], values[kGrad] * scalars.grad_multiplier, state,
                                   scalars.of_rule);
  FUSED_OPTIM_UNROLL
  for (int i = 0; i < kStates; ++i)
    if (has_state(states, i)) values[place_of<states>(i)] = state[i];
}

}  // namespace fused_optim::cuda
