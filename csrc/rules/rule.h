// The contract of a rule: one optimizer's mathematics, without traversal, storage or device.
//
// A rule is a struct with
//   name             its name in the registry;
//   hyperparameters  their keys in param_groups, "betas[0]" for an item of a tuple;
//   Hyperparameters  a struct of as many doubles in the same order (flags are 0 or 1);
//   states           its state tensors in torch's order, each with the hyperparameter that
//                    switches it on (none: always there) and the one whose value it begins
//                    with (none: zero);
//   has_step         whether torch keeps a `step` in the state; where it does not, `step` is 1
//                    for a parameter whose state is new and 2 ever after;
//   begins_in_constructor
//                    optional: torch makes the state in the constructor, so that the model may have
//                    changed its dtype since;
//   first_step_differs_with
//                    optional, for rules without step: the hyperparameter that at 0 makes the
//                    first step the one that states of zero would give anyway;
//   scalar_states    optional, for rules with step: states of one element, in torch's order, each
//                    with the number or the hyperparameter that it begins as, and
//   advance<S>(hyperparameters, step, scalar_states), which takes them through the step, in the
//                    opmath type S of their dtype;
//   Scalars<T>       what is the same for all elements of a tensor, and
//   scalars<T>(hyperparameters, step), which computes it, in double until the last assignment;
//                    rules with scalar states get these as well: (..., before, after) the step;
//   update<states>(param, grad, state, scalars)
//                    one element's step in opmath type T. `state` is an array of all states;
//                    those that are switched off hold zero and are not stored.
// The gradient arrives with maximize's sign and AMP's scale already applied.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string_view>

namespace fused_optim {

constexpr int kMaxStates = 4;
constexpr int kMaxScalarStates = 2;
constexpr int kMaxHyperparameters = 12;

struct StateSpec {
  const char* name;
  const char* enabled_by = nullptr;
  const char* begins_as = nullptr;
};

struct ScalarStateSpec {
  const char* name;
  double begins_at = 0;
  const char* begins_as = nullptr;
};

/// A rule's scalar states, as stored, at the beginning and at the end of a step.
struct ScalarValues {
  double before[kMaxScalarStates], after[kMaxScalarStates];
};

/// The set of states that are switched on, a bit each: the only thing that changes the code.
using StateMask = unsigned;

constexpr bool has_state(StateMask states, int state) {
  return (states >> state) & 1u;
}

/// A rule as the gather sees it: the names, at run time.
struct RuleSpec {
  const char* name;
  const char* const* hyperparameters;
  int num_hyperparameters;
  const StateSpec* states;
  int num_states;
  const ScalarStateSpec* scalar_states;
  int num_scalar_states;
  bool has_step;
  bool begins_in_constructor;
  const char* first_step_differs_with;  // nullptr: it doesn't
};

/// The place of the hyperparameter of this name, which the rule must have.
constexpr int hyperparameter_index(const RuleSpec& rule, std::string_view name) {
  for (int i = 0; i < rule.num_hyperparameters; ++i)
    if (name == rule.hyperparameters[i]) return i;
  throw std::logic_error("fused_optim: a rule names a hyperparameter that it has not");
}

template <class Rule>
constexpr int num_states = sizeof(Rule::states) / sizeof(StateSpec);

template <class Rule>
constexpr int count_scalar_states() {
  if constexpr (requires { Rule::scalar_states; })
    return sizeof(Rule::scalar_states) / sizeof(ScalarStateSpec);
  return 0;
}

template <class Rule>
constexpr int num_scalar_states = count_scalar_states<Rule>();

/// The states that are always on.
template <class Rule>
constexpr StateMask states_always_on() {
  StateMask states = 0;
  for (int i = 0; i < num_states<Rule>; ++i)
    if (Rule::states[i].enabled_by == nullptr) states |= 1u << i;
  return states;
}

template <class Rule>
constexpr RuleSpec make_spec() {
  constexpr int num_hyperparameters = sizeof(Rule::hyperparameters) / sizeof(const char*);
  static_assert(sizeof(typename Rule::Hyperparameters) == num_hyperparameters * sizeof(double));
  static_assert(num_hyperparameters <= kMaxHyperparameters && num_states<Rule> <= kMaxStates);
  static_assert(num_scalar_states<Rule> <= kMaxScalarStates);
  static_assert(num_scalar_states<Rule> == 0 || Rule::has_step);
  const ScalarStateSpec* scalar_states = nullptr;
  if constexpr (num_scalar_states<Rule> > 0) scalar_states = Rule::scalar_states;
  const char* first_step_differs_with = nullptr;
  if constexpr (requires { Rule::first_step_differs_with; })
    first_step_differs_with = Rule::first_step_differs_with;
  return {Rule::name,
          Rule::hyperparameters,
          num_hyperparameters,
          Rule::states,
          num_states<Rule>,
          scalar_states,
          num_scalar_states<Rule>,
          Rule::has_step,
          requires { Rule::begins_in_constructor; },
          first_step_differs_with};
}

}  // namespace fused_optim
