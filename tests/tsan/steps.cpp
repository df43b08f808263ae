#include "steps.h"

#include <algorithm>
#include <cstring>

#include "cpu/apply.h"
#include "rules/one_element_states.h"
#include "rules/registry.h"

namespace fused_optim::tsan {
namespace {

constexpr int kSteps = 2;  // the first, which some rules treat differently, and another
constexpr int kGroups = 2;
constexpr Device kHost{DeviceKind::CPU, 0};

template <class Rule>
void advance(const HyperparameterRow& row, double step, ScalarStates& states) {
  if constexpr (num_scalar_states<Rule> > 0) {
    typename Rule::Hyperparameters hyperparameters;
    memcpy(&hyperparameters, row.values, sizeof(hyperparameters));
    advance_scalar_states<Rule>(hyperparameters, step, states.dtype, states.values);
  }
}

using Advance = void (*)(const HyperparameterRow&, double, ScalarStates&);
#define FUSED_OPTIM_ADVANCE(Rule) advance<Rule>,
constexpr Advance kAdvance[] = {FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_ADVANCE)};
#undef FUSED_OPTIM_ADVANCE

#define FUSED_OPTIM_BASE(Rule) states_always_on<Rule>(),
constexpr StateMask kBaseVariants[] = {FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_BASE)};
#undef FUSED_OPTIM_BASE

bool has_operand(const StepCase& kind, int operand) {
  if (operand == kAverage) return kind.is_finished;
  return operand < kFirstState || has_state(kind.states, operand - kFirstState);
}

}  // namespace

std::string StepCase::name() const {
  constexpr const char* dtypes[kNumDTypes] = {"float32", "float64", "bfloat16", "float16"};
  return std::string(kRules[rule].name) + " of states " + std::to_string(states) + ", " +
         dtypes[static_cast<int>(dtype)] + (is_strided ? ", strided" : "") +
         (is_finished ? ", zeroed and averaged" : "");
}

std::vector<StepCase> step_cases() {
  std::vector<StepCase> cases;
  for (int rule = 0; rule < kNumRules; ++rule)
    for (StateMask states = 0; states < 1u << kRules[rule].num_states; ++states) {
      if ((states & kBaseVariants[rule]) != kBaseVariants[rule]) continue;
      for (int dtype = 0; dtype < kNumDTypes; ++dtype)
        for (int options = 0; options < 4; ++options)
          cases.push_back(
              {rule, states, static_cast<DType>(dtype), (options & 1) != 0, (options & 2) != 0});
    }
  return cases;
}

Tensors::Tensors(const StepCase& kind) : kind_(kind) {
  const std::vector<Shape> shapes = ragged_shapes();
  int64_t total = 0;
  for (const Shape& shape : shapes) ends_.push_back(total += shape.numel());
  for (int operand = 0; operand < kMaxOperands; ++operand)
    if (has_operand(kind, operand)) operands_[operand].resize(total * item_size(kind.dtype));
  fill_random(operands_[kParam].data(), total, kind.dtype, 0);

  table_.rule = kind.rule;
  table_.zero_grads = kind.is_finished;
  table_.ema_weight = 0.25;
  add_groups();
  for (size_t i = 0; i < shapes.size(); ++i) add_tensor(shapes[i], ends_[i] - shapes[i].numel());
  for (const TensorEntry& entry : table_.entries) bucket_.push_back(&entry);
}

/// Hyperparameters are numbered, not named, so that a new rule needs nothing here: no race depends
/// on their values, only on which of them switch states off.
void Tensors::add_groups() {
  const RuleSpec& rule = kRules[kind_.rule];
  for (int group = 0; group < kGroups; ++group) {
    HyperparameterRow row{};
    for (int i = 0; i < rule.num_hyperparameters; ++i) row.values[i] = 0.01 * (i + 1) + 0.1 * group;
    for (int i = 0; i < rule.num_states; ++i)
      if (rule.states[i].enabled_by != nullptr && !has_state(kind_.states, i))
        row.values[hyperparameter_index(rule, rule.states[i].enabled_by)] = 0.0;
    row.grad_multiplier = group == 0 ? 0.5 : -1.0;
    table_.rows.push_back(row);
  }
}

void Tensors::add_tensor(const Shape& shape, int64_t first) {
  const RuleSpec& rule = kRules[kind_.rule];
  const auto index = static_cast<int32_t>(table_.entries.size());
  TensorEntry entry{};
  entry.numel = shape.numel();
  entry.row = index / 4 % kGroups;
  entry.strided = -1;
  entry.device = kHost;
  entry.dtype = kind_.dtype;
  entry.mask = static_cast<uint8_t>(kind_.states);
  for (int operand = 0; operand < kMaxOperands; ++operand)
    if (has_operand(kind_, operand))
      entry.operands[operand] = operands_[operand].data() + first * item_size(kind_.dtype);
  for (int i = 0; i < rule.num_states; ++i)
    if (has_state(kind_.states, i) && rule.states[i].begins_as != nullptr)
      fill(entry.operands[kFirstState + i], entry.numel, kind_.dtype,
           table_.rows[entry.row].values[hyperparameter_index(rule, rule.states[i].begins_as)]);
  if (kind_.is_strided && index % 2 == 0) add_layout(shape, entry);
  if (rule.num_scalar_states > 0) add_scalar_states(entry.row);
  table_.entries.push_back(entry);
}

/// Column by column, where the parameter lies row by row.
void Tensors::add_layout(const Shape& shape, TensorEntry& entry) {
  StridedLayout layout;
  layout.sizes = {shape.rows, shape.columns};
  for (int operand : {kGrad, kFirstState, kAverage})
    if (has_operand(kind_, operand)) layout.strides[operand] = {1, shape.rows};
  entry.strided = static_cast<int32_t>(table_.strided.size());
  table_.strided.push_back(layout);
}

void Tensors::add_scalar_states(int32_t row) {
  const RuleSpec& rule = kRules[kind_.rule];
  ScalarStates states{};
  states.dtype = DType::Float32;
  for (int i = 0; i < rule.num_scalar_states; ++i) {
    const ScalarStateSpec& state = rule.scalar_states[i];
    states.values.after[i] =
        state.begins_as == nullptr
            ? state.begins_at
            : table_.rows[row].values[hyperparameter_index(rule, state.begins_as)];
  }
  table_.scalar_states.push_back(states);
}

void Tensors::begin_step(int step) {
  fill_random(operands_[kGrad].data(), ends_.back(), kind_.dtype, step);
  for (size_t i = 0; i < table_.entries.size(); ++i) {
    TensorEntry& entry = table_.entries[i];
    entry.step = kRules[kind_.rule].has_step ? step : std::min(step, 2);
    if (table_.scalar_states.empty()) continue;
    ScalarValues& values = table_.scalar_states[i].values;
    std::copy_n(values.after, kMaxScalarStates, values.before);
    kAdvance[kind_.rule](table_.rows[entry.row], entry.step, table_.scalar_states[i]);
  }
}

void Tensors::run_steps() {
  for (int step = 1; step <= kSteps; ++step) {
    begin_step(step);
    cpu::apply({&table_, bucket_.data(), ends_.data(), static_cast<int64_t>(bucket_.size())});
  }
}

bool Tensors::has_same_bits(const Tensors& other) const {
  return std::equal(operands_, operands_ + kMaxOperands, other.operands_);
}

}  // namespace fused_optim::tsan
