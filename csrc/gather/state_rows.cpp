#include "gather/state_rows.h"

#include "base/errors.h"
#include "tensors/checks.h"

namespace fused_optim {
namespace {

PyObject* intern(const char* name) {
  PyObject* key = PyUnicode_InternFromString(name);
  if (key == nullptr) throw PythonError();
  return key;
}

}  // namespace

RuleRows intern_rows(const RuleSpec& rule) {
  RuleRows rows{};
  rows.hyperparameters = intern_hyperparameters(rule);
  for (int i = 0; i < rule.num_states; ++i) {
    const StateSpec& state = rule.states[i];
    const int first = state.is_like_param() ? kFirstState : 0;
    rows.rows[i] = {state, intern(state.name), first + rule.places[i]};
  }
  rows.rows[rule.num_states] = {{kAverageName}, intern(kAverageName), kAverage};
  rows.num_rows = rule.num_states + 1;
  return rows;
}

}  // namespace fused_optim
