#include "run/commit.h"

#include "rules/one_element_states.h"
#include "rules/registry.h"

namespace fused_optim {
namespace {

using Advance = void (*)(const double* hyperparameters, double step, ScalarStates& states);

template <class Rule>
constexpr Advance advance_of() {
  if constexpr (num_scalar_states<Rule> > 0)
    return [](const double* values, double step, ScalarStates& states) {
      typename Rule::Hyperparameters hyperparameters;
      memcpy(&hyperparameters, values, sizeof(hyperparameters));
      advance_scalar_states<Rule>(hyperparameters, step, states.dtype, states.values);
    };
  return nullptr;
}

#define FUSED_OPTIM_ADVANCE(Rule) advance_of<Rule>(),
constexpr Advance kAdvance[] = {FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_ADVANCE)};
#undef FUSED_OPTIM_ADVANCE

/// Advances the scalar states on the host. Tensors of one group mostly share step and values:
/// what they become is computed once.
void advance_scalar_states_of(TensorTable& table) {
  const int count = kRules[table.rule].num_scalar_states;
  const TensorEntry* last = nullptr;
  for (size_t index = 0; index < table.scalar_states.size(); ++index) {
    const TensorEntry& entry = table.entries[index];
    ScalarStates& states = table.scalar_states[index];
    if (states.on_device) continue;
    if (last != nullptr && table.have_same_scalars(*last, entry))
      states.values = table.scalar_states_of(*last)->values;
    else
      kAdvance[table.rule](table.rows[entry.row].values, entry.step, states);
    for (int i = 0; i < count; ++i)
      store_scalar(states.data[i], states.dtype, states.values.after[i]);
    last = &entry;
  }
}

}  // namespace

void commit(Gathered& gathered) {
  for (const HostStep& step : gathered.steps) {
    TensorEntry& entry = gathered.table.entries[step.entry];
    // A step tensor that several parameters share advances once for each, as in torch.
    entry.step = step.dtype == DType::Float32 ? (*static_cast<float*>(step.data) += 1)
                                              : (*static_cast<double*>(step.data) += 1);
  }
  advance_scalar_states_of(gathered.table);
  for (c10::TensorImpl* tensor : gathered.written) tensor->bump_version();
}

}  // namespace fused_optim
