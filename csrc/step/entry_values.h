// What is the same for all elements of an entry, as far as the host knows it.
#pragma once

#include "rules/one_element_states.h"
#include "rules/registry.h"
#include "step/table.h"

namespace fused_optim {

/// The states of one element that a rule reads: all but the step.
struct OneElementSpan {
  const OneElementState* states;
  int count;
};

inline OneElementSpan beside_step(const TensorTable& table, const TensorEntry& entry) {
  const int first = kRules[table.rule].has_step ? 1 : 0;
  return {table.one_element_states_of(entry) + first, table.num_one_element - first};
}

inline OneElementValues values_of(const OneElementSpan& span) {
  OneElementValues values{};
  for (int i = 0; i < span.count; ++i) {
    values.before[i] = span.states[i].before;
    values.after[i] = span.states[i].after;
  }
  return values;
}

/// Whether what is the same for all of its elements is the same for both entries. The step must be
/// known.
inline bool have_same_values(const TensorTable& table, const TensorEntry& a, const TensorEntry& b) {
  if (a.row != b.row || a.step != b.step) return false;
  if (table.num_one_element <= 1) return true;  // but the step
  const OneElementSpan of_a = beside_step(table, a), of_b = beside_step(table, b);
  for (int i = 0; i < of_a.count; ++i)
    if (of_a.states[i].format != of_b.states[i].format ||
        of_a.states[i].before != of_b.states[i].before)
      return false;
  return true;
}

}  // namespace fused_optim
