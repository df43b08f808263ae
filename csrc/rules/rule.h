// The contract of a rule: one optimizer's mathematics, without traversal, storage or device.
//
// A rule is a struct with
//   name             its name in the registry;
//   hyperparameters  their keys in param_groups, "betas[0]" for an item of a tuple;
//   Hyperparameters  a struct of as many doubles in the same order (flags are 0 or 1);
//   states           what it keeps of each parameter, in torch's order: tensors of the parameter's
//                    shape, and of one element. Where kStepState is among them, torch counts the
//                    steps; where it is not, `step` is 1 for a parameter whose state is new and 2
//                    ever after;
//   first_step_differs_with
//                    optional, for rules without step: the hyperparameter that at 0 makes the
//                    first step the one that states of zero would give anyway;
//   advance<S>(hyperparameters, step, one_element_states)
//                    for rules with states of one element beside the step: takes them through the
//                    step, in the opmath type S of their dtype;
//   Scalars<T>       what is the same for all elements of a tensor, and
//   scalars<T>(hyperparameters, step), which computes it, in double until the last assignment;
//                    rules with states of one element get these as well: (..., before, after) the
//                    step;
//   update<states>(param, grad, state, scalars)
//                    one element's step in opmath type T. `state` is an array of all states of the
//                    parameter's shape; those that are switched off hold zero and are not stored.
// The gradient arrives with maximize's sign and AMP's scale already applied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string_view>

namespace fused_optim {

constexpr int kMaxStates = 4;            // of the parameter's shape
constexpr int kMaxOneElementStates = 2;  // beside the step
constexpr int kMaxRuleStates = kMaxStates + kMaxOneElementStates + 1;
constexpr int kMaxHyperparameters = 12;

enum class StateShape : uint8_t { LikeParam, OneElement };

/// What a moving state of the parameter's shape holds: numbers of both signs, or none below zero.
/// By that its 8-bit codes are chosen, and whether few bits make it stand still.
enum class Moment : uint8_t { None, First, Second };

/// A state of a rule: what the optimizer keeps under a name for each parameter.
struct StateSpec {
  const char* name;
  const char* enabled_by = nullptr;  // the hyperparameter that switches it on; none: always there
  const char* begins_as = nullptr;   // the hyperparameter whose value it begins with
  double begins_at = 0.0;            // else the number
  StateShape shape = StateShape::LikeParam;
  Moment moment = Moment::None;
  bool needs_bits = false;           // its dynamics in 8 bits are not those that it has
  const char* exact_with = nullptr;  // the hyperparameter that, switched on, rules 8 bits out

  constexpr bool is_like_param() const { return shape == StateShape::LikeParam; }
  constexpr bool has_codes() const { return moment != Moment::None && !needs_bits; }
};

/// The number of steps, torch's `step`.
inline constexpr StateSpec kStepState{"step", nullptr, nullptr, 0.0, StateShape::OneElement};

constexpr bool is_step(const StateSpec& state) {
  return std::string_view(state.name) == kStepState.name;
}

constexpr StateSpec one_element_state(const char* name, double begins_at,
                                      const char* begins_as = nullptr) {
  return {name, nullptr, begins_as, begins_at, StateShape::OneElement};
}

constexpr StateSpec first_moment(const char* name, const char* enabled_by = nullptr) {
  return {name, enabled_by, nullptr, 0.0, StateShape::LikeParam, Moment::First};
}

constexpr StateSpec second_moment(const char* name, const char* begins_as = nullptr,
                                  const char* exact_with = nullptr) {
  return {name, nullptr, begins_as, 0.0, StateShape::LikeParam, Moment::Second, false, exact_with};
}

constexpr StateSpec needing_bits(StateSpec state) {
  state.needs_bits = true;
  return state;
}

/// A rule's states of one element but the step, as stored, at the beginning and at the end of one.
struct OneElementValues {
  double before[kMaxOneElementStates], after[kMaxOneElementStates];
};

/// The states of the parameter's shape that are switched on, a bit each: the only thing that
/// changes the code.
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
  /// The place of each among those of the parameter's shape, or among those of one element.
  int8_t places[kMaxRuleStates];
  int num_like_param, num_one_element;
  bool has_step;                        // it is then the first of those of one element
  const char* first_step_differs_with;  // nullptr: it doesn't
};

/// The place of the hyperparameter of this name, which the rule must have.
constexpr int hyperparameter_index(const RuleSpec& rule, std::string_view name) {
  for (int i = 0; i < rule.num_hyperparameters; ++i)
    if (name == rule.hyperparameters[i]) return i;
  throw std::logic_error("fused_optim: a rule names a hyperparameter that it has not");
}

template <class Rule>
constexpr bool has_step() {
  for (const StateSpec& state : Rule::states)
    if (is_step(state)) return true;
  return false;
}

template <class Rule>
constexpr int count_like_param() {
  int count = 0;
  for (const StateSpec& state : Rule::states) count += state.is_like_param();
  return count;
}

/// The states of the parameter's shape.
template <class Rule>
constexpr int num_states = count_like_param<Rule>();

/// The states of one element beside the step.
template <class Rule>
constexpr int num_one_element_states = static_cast<int>(sizeof(Rule::states) / sizeof(StateSpec)) -
                                       num_states<Rule> - (has_step<Rule>() ? 1 : 0);

/// The states of the parameter's shape that are always on.
template <class Rule>
constexpr StateMask states_always_on() {
  StateMask mask = 0, bit = 1;
  for (const StateSpec& state : Rule::states) {
    if (!state.is_like_param()) continue;
    if (state.enabled_by == nullptr) mask |= bit;
    bit <<= 1;
  }
  return mask;
}

template <class Rule>
constexpr RuleSpec make_spec() {
  constexpr int num_hyperparameters = sizeof(Rule::hyperparameters) / sizeof(const char*);
  static_assert(sizeof(typename Rule::Hyperparameters) == num_hyperparameters * sizeof(double));
  static_assert(num_hyperparameters <= kMaxHyperparameters && num_states<Rule> <= kMaxStates);
  static_assert(num_one_element_states<Rule> <= kMaxOneElementStates);
  static_assert(num_one_element_states<Rule> == 0 || is_step(Rule::states[0]));
  RuleSpec spec{};
  spec.name = Rule::name;
  spec.hyperparameters = Rule::hyperparameters;
  spec.num_hyperparameters = num_hyperparameters;
  spec.states = Rule::states;
  spec.num_states = sizeof(Rule::states) / sizeof(StateSpec);
  for (int i = 0; i < spec.num_states; ++i)
    spec.places[i] = static_cast<int8_t>(spec.states[i].is_like_param() ? spec.num_like_param++
                                                                        : spec.num_one_element++);
  spec.has_step = has_step<Rule>();
  if constexpr (requires { Rule::first_step_differs_with; })
    spec.first_step_differs_with = Rule::first_step_differs_with;
  return spec;
}

}  // namespace fused_optim
