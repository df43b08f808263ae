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
    const RowKind kind = is_step(state)          ? RowKind::Step
                         : state.is_like_param() ? RowKind::LikeParam
                                                 : RowKind::OneElement;
    rows.rows[i] = {state, kind, first + rule.places[i]};
    rows.keys[i] = intern(state.name);
  }
  rows.rows[rule.num_states] = {{kAverageName}, RowKind::Average, kAverage};
  rows.keys[rule.num_states] = intern(kAverageName);
  rows.num_rows = rule.num_states + 1;
  return rows;
}

}  // namespace fused_optim
