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

using Advance = void (*)(const double* hyperparameters, double step, OneElementValues& values);

template <class Rule>
constexpr Advance advance_of() {
  if constexpr (num_one_element_states<Rule> > 0)
    return [](const double* values_of_group, double step, OneElementValues& values) {
      typename Rule::Hyperparameters hyperparameters;
      memcpy(&hyperparameters, values_of_group, sizeof(hyperparameters));
      advance_one_element_states<Rule>(hyperparameters, step, Format::Float32, values);
    };
  return nullptr;
}

#define FUSED_OPTIM_ADVANCE(Rule) advance_of<Rule>(),
constexpr Advance kAdvance[] = {FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_ADVANCE)};
#undef FUSED_OPTIM_ADVANCE

#define FUSED_OPTIM_BASE(Rule) states_always_on<Rule>(),
constexpr StateMask kAlwaysOn[] = {FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_BASE)};
#undef FUSED_OPTIM_BASE

bool has_operand(const StepCase& kind, int operand) {
  if (operand == kAverage) return kind.is_finished;
  return operand < kFirstState || has_state(kind.states, operand - kFirstState);
}

}  // namespace

std::string StepCase::name() const {
  return std::string(kRules[rule].name) + " of states " + std::to_string(states) + ", " +
         format_name(dtype) + (is_compact ? ", compact" : "") + (is_strided ? ", strided" : "") +
         (is_finished ? ", zeroed and averaged" : "");
}

std::vector<StepCase> step_cases() {
  std::vector<StepCase> cases;
  for (int rule = 0; rule < kNumRules; ++rule)
    for (StateMask states = 0; states < 1u << kRules[rule].num_like_param; ++states) {
      if ((states & kAlwaysOn[rule]) != kAlwaysOn[rule]) continue;
      for (int dtype = 0; dtype < kNumFormats; ++dtype)
        for (int options = 0; options < 4; ++options)
          cases.push_back(
              {rule, states, static_cast<Format>(dtype), (options & 1) != 0, (options & 2) != 0});
      for (const bool is_finished : {false, true})
        cases.push_back({rule, states, Format::BFloat16, false, is_finished, true});
    }
  return cases;
}

Tensors::Tensors(const StepCase& kind) : kind_(kind) {
  const std::vector<Shape> shapes = ragged_shapes();
  int64_t total = 0;
  for (const Shape& shape : shapes) ends_.push_back(total += shape.numel());
  for (int operand = 0; operand < kMaxOperands; ++operand)
    if (has_operand(kind, operand)) {
      operands_[operand].resize(total * item_size(kind.dtype));
      if (kind.is_compact) sides_[operand].resize(total * sizeof(float));  // more than enough
    }
  fill_random(operands_[kParam].data(), total, kind.dtype, 0);

  table_.rule = kind.rule;
  table_.num_one_element = kRules[kind.rule].num_one_element;
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
      if (rule.states[i].enabled_by != nullptr && !has_state(kind_.states, rule.places[i]))
        row.values[hyperparameter_index(rule, rule.states[i].enabled_by)] = 0.0;
    row.sign = group == 0 ? 0.5 : -1.0;
    table_.rows.push_back(row);
  }
}

void Tensors::add_tensor(const Shape& shape, int64_t first) {
  const RuleSpec& rule = kRules[kind_.rule];
  const auto index = static_cast<int32_t>(table_.entries.size());
  TensorEntry entry{};
  entry.numel = shape.numel();
  entry.row = index / 4 % kGroups;
  entry.device = kHost;
  std::fill_n(entry.formats, kMaxOperands, kind_.dtype);
  entry.mask = static_cast<uint8_t>(kind_.states);
  for (int operand = 0; operand < kMaxOperands; ++operand)
    if (has_operand(kind_, operand))
      entry.operands[operand] = operands_[operand].data() + first * item_size(kind_.dtype);
  for (int i = 0; i < rule.num_states; ++i)
    if (rule.states[i].is_like_param() && has_state(kind_.states, rule.places[i]) &&
        rule.states[i].begins_as != nullptr)
      fill(entry.operands[kFirstState + rule.places[i]], entry.numel, kind_.dtype,
           table_.rows[entry.row].values[hyperparameter_index(rule, rule.states[i].begins_as)]);
  if (kind_.is_strided && index % 2 == 0) add_layout(shape, entry);
  if (kind_.is_compact) make_compact(first, entry);
  add_one_element_states(entry.row);
  table_.entries.push_back(entry);
}

/// The parameter gets a master, moments codes of zero; other states stay as they are.
void Tensors::make_compact(int64_t first, TensorEntry& entry) {
  const RuleSpec& rule = kRules[kind_.rule];
  entry.compact = static_cast<int32_t>(table_.compact.size());
  CompactEntry& compact = table_.compact.emplace_back();
  compact.key = static_cast<uint64_t>(first);
  const auto make = [&](int operand, Format format) {
    entry.formats[operand] = format;
    compact.sides[operand] = sides_[operand].data() + first * sizeof(float);
  };
  make(kParam, Format::Master24);
  compact.stochastic = 1u << kParam;
  for (int i = 0; i < rule.num_states; ++i) {
    const StateSpec& state = rule.states[i];
    if (!state.is_like_param() || !state.has_codes() || !has_state(kind_.states, rule.places[i]))
      continue;
    const int operand = state_operand(rule.places[i]);
    make(operand, state.moment == Moment::First ? Format::SignedCodes : Format::UnsignedCodes);
    memset(entry.operands[operand], 0, entry.numel * item_size(kind_.dtype));
  }
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

void Tensors::add_one_element_states(int32_t row) {
  const RuleSpec& rule = kRules[kind_.rule];
  for (int i = 0; i < rule.num_states; ++i) {
    const StateSpec& spec = rule.states[i];
    if (spec.is_like_param()) continue;
    OneElementState& state = table_.one_element_states.emplace_back();
    state.format = Format::Float32;
    state.after = spec.begins_as == nullptr
                      ? spec.begins_at
                      : table_.rows[row].values[hyperparameter_index(rule, spec.begins_as)];
  }
}

void Tensors::begin_step(int step) {
  fill_random(operands_[kGrad].data(), ends_.back(), kind_.dtype, step);
  for (TensorEntry& entry : table_.entries) {
    const bool has_step = kRules[kind_.rule].has_step;
    entry.step = has_step ? step : std::min(step, 2);
    if (table_.num_one_element <= has_step) continue;
    OneElementState* states = table_.one_element_states_of(entry) + has_step;
    const int count = table_.num_one_element - has_step;
    OneElementValues values{};
    for (int i = 0; i < count; ++i) values.before[i] = states[i].before = states[i].after;
    kAdvance[kind_.rule](table_.rows[entry.row].values, entry.step, values);
    for (int i = 0; i < count; ++i) states[i].after = values.after[i];
  }
}

void Tensors::run_steps() {
  for (int step = 1; step <= kSteps; ++step) {
    begin_step(step);
    cpu::apply({&table_, bucket_.data(), ends_.data(), static_cast<int64_t>(bucket_.size())});
  }
}

bool Tensors::has_same_bits(const Tensors& other) const {
  return std::equal(operands_, operands_ + kMaxOperands, other.operands_) &&
         std::equal(sides_, sides_ + kMaxOperands, other.sides_);
}

}  // namespace fused_optim::tsan
