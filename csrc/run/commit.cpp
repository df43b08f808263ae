#include "run/commit.h"

#include "base/random.h"
#include "gather/python_tensor.h"
#include "rules/one_element_states.h"
#include "rules/registry.h"
#include "step/entry_values.h"

namespace fused_optim {
namespace {

using Advance = void (*)(const double* hyperparameters, double step, Format format,
                         OneElementValues& values);

template <class Rule>
constexpr Advance advance_of() {
  if constexpr (num_one_element_states<Rule> > 0)
    return [](const double* hyperparameter_values, double step, Format format,
              OneElementValues& values) {
      typename Rule::Hyperparameters hyperparameters;
      memcpy(&hyperparameters, hyperparameter_values, sizeof(hyperparameters));
      advance_one_element_states<Rule>(hyperparameters, step, format, values);
    };
  return nullptr;
}

#define FUSED_OPTIM_ADVANCE(Rule) advance_of<Rule>(),
constexpr Advance kAdvance[] = {FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_ADVANCE)};
#undef FUSED_OPTIM_ADVANCE

void advance_step(TensorEntry& entry, const OneElementState& state) {
  // A step tensor that several parameters share advances once for each, as in torch.
  entry.step = state.format == Format::Float32 ? (*static_cast<float*>(state.data) += 1)
                                               : (*static_cast<double*>(state.data) += 1);
}

/// The values of the states of one element beside the step, before and after. Tensors of one group
/// mostly share step and values: what they become is computed once.
OneElementValues advanced(const TensorTable& table, const TensorEntry& entry,
                          const TensorEntry* last) {
  if (last != nullptr && have_same_values(table, *last, entry))
    return values_of(beside_step(table, *last));
  const OneElementSpan span = beside_step(table, entry);
  OneElementValues values = values_of(span);
  kAdvance[table.rule](table.rows[entry.row].values, entry.step, span.states->format, values);
  return values;
}

/// All states of one element that are on the host.
void advance(TensorTable& table) {
  if (table.num_one_element == 0) return;
  const bool has_step = kRules[table.rule].has_step;
  const TensorEntry* last = nullptr;
  for (TensorEntry& entry : table.entries) {
    OneElementState* states = table.one_element_states_of(entry);
    if (has_step && !states[0].is_on_device) advance_step(entry, states[0]);
    if (table.num_one_element == has_step || states[has_step].is_on_device) continue;
    const OneElementValues values = advanced(table, entry, last);
    for (int i = has_step; i < table.num_one_element; ++i) {
      states[i].after = values.after[i - has_step];
      store_scalar(states[i].data, states[i].format, states[i].after);
    }
    last = &entry;
  }
}

/// The counters of steps that random bits are made of.
void advance_counters(TensorTable& table) {
  for (CompactEntry& compact : table.compact) {
    OneElementState& counter = compact.counter;
    if (counter.data == nullptr || counter.is_on_device) continue;
    // Parameters that share a counter advance it once for each.
    counter.after = next_count(load_scalar(counter.data, counter.format));
    store_scalar(counter.data, counter.format, counter.after);
  }
}

}  // namespace

void commit(Gathered& gathered) {
  advance(gathered.table);
  advance_counters(gathered.table);
  for (c10::TensorImpl* tensor : gathered.written) tensor->bump_version();
  for (const Wrapper& wrapper : gathered.wrappers)
    unpack(wrapper.object).unsafeGetTensorImpl()->bump_version();
}

}  // namespace fused_optim
