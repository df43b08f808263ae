#include "gather/state_rows.h"

#include "base/errors.h"
#include "gather/python_dict.h"
#include "tensors/checks.h"

namespace fused_optim {
namespace {

void add_row(RuleRows& rows, const StateSpec& spec, RowKind kind, int place) {
  rows.keys[rows.num_rows] = intern(spec.name);
  rows.scales[rows.num_rows] = -1;
  rows.rows[rows.num_rows++] = {spec, kind, place};
}

/// What compact formats keep beside the rule's states. Names of scales live as long as the process.
void add_compact_rows(RuleRows& rows, const RuleSpec& rule) {
  add_row(rows, {kRemainderName}, RowKind::Remainder, kParam);
  for (int i = 0; i < rule.num_states; ++i) {
    if (!rule.states[i].has_codes()) continue;
    rows.scales[i] = static_cast<int8_t>(rows.num_rows);
    const auto* name = new std::string(scales_name(rule.states[i].name));
    add_row(rows, {name->c_str()}, RowKind::Scales, rows.rows[i].place);
  }
  if (!rule.has_step) add_row(rows, kStepState, RowKind::Counter, 0);
}

}  // namespace

std::string scales_name(const std::string& state) {
  return state + "_scales";
}

RuleRows intern_rows(const RuleSpec& rule) {
  RuleRows rows{};
  rows.hyperparameters = intern_hyperparameters(rule);
  for (int i = 0; i < rule.num_states; ++i) {
    const StateSpec& state = rule.states[i];
    const int first = state.is_like_param() ? kFirstState : 0;
    const RowKind kind = is_step(state)          ? RowKind::Step
                         : state.is_like_param() ? RowKind::LikeParam
                                                 : RowKind::OneElement;
    add_row(rows, state, kind, first + rule.places[i]);
  }
  add_row(rows, {kAverageName}, RowKind::Average, kAverage);
  rows.num_usual = rows.num_rows;
  add_compact_rows(rows, rule);
  return rows;
}

}  // namespace fused_optim
