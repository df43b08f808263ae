// What is the same for all elements of an entry, computed once a block for as long as what it is
// made of stays the same.
#pragma once

#include "cuda/block.h"
#include "cuda/kernel_table.h"
#include "rules/one_element_states.h"
#include "rules/rule.h"

namespace fused_optim::cuda {

/// The scalar states of an entry as they are before the step.
template <class Rule>
FUSED_OPTIM_INLINE OneElementValues load_one_element_states(const EntryView& entry) {
  OneElementValues values{};
  FUSED_OPTIM_UNROLL
  for (int i = 0; i < num_one_element_states<Rule>; ++i)
    values.before[i] = load_scalar(entry.one_element_state(i), entry.one_element_format());
  return values;
}

template <class Rule>
constexpr int kHyperparameters = sizeof(typename Rule::Hyperparameters) / sizeof(double);

template <class Rule>
FUSED_OPTIM_INLINE RowView row_of(const TableView& table, const EntryView& entry) {
  constexpr int size = RowView::size(kHyperparameters<Rule>);
  return {table.words + table.head.first_row + entry.row() * size};
}

template <class Rule>
FUSED_OPTIM_INLINE typename Rule::Hyperparameters hyperparameters_of(const TableView& table,
                                                                     const EntryView& entry) {
  const RowView row = row_of<Rule>(table, entry);
  double values[kHyperparameters<Rule>];
  FUSED_OPTIM_UNROLL
  for (int i = 0; i < kHyperparameters<Rule>; ++i) values[i] = row.value(i);
  typename Rule::Hyperparameters hyperparameters;
  memcpy(&hyperparameters, values, sizeof(hyperparameters));
  return hyperparameters;
}

/// On the device it lies in shared memory, which takes no registers from the loop over elements,
/// and one thread computes it, as arithmetic in double is slow there.
template <class Rule, class T>
struct EntryScalars {
  struct Values {
    T grad_multiplier, ema_weight;
    typename Rule::template Scalars<T> of_rule;
  };

  Values values;

  /// Forgets what values are made of. Like prepare, for all threads of a block together.
  template <class Block>
  FUSED_OPTIM_INLINE void reset(const Block& block) {
    block.once([&] { row_ = ~0u; });
    block.wait();
  }

  /// Makes `values` this entry's.
  template <class Block>
  FUSED_OPTIM_INLINE void prepare(const Block& block, const TableView& table,
                                  const EntryView& entry) {
    const double step = entry.step();
    const OneElementValues states = load_one_element_states<Rule>(entry);
    if (are_made_of(entry.row(), step, states)) return;
    block.wait();  // others may still read what is there
    block.once([&] { make(table, entry, step, states); });
    block.wait();
  }

 private:
  FUSED_OPTIM_INLINE bool are_made_of(uint32_t row, double step,
                                      const OneElementValues& states) const {
    bool same = row == row_ && step == step_;
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < num_one_element_states<Rule>; ++i)
      same = same && states.before[i] == before_[i];
    return same;
  }

  FUSED_OPTIM_INLINE void make(const TableView& table, const EntryView& entry, double step,
                               OneElementValues states) {
    row_ = entry.row();
    step_ = step;
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < num_one_element_states<Rule>; ++i) before_[i] = states.before[i];
    const auto hyperparameters = hyperparameters_of<Rule>(table, entry);
    if constexpr (num_one_element_states<Rule> > 0)
      advance_one_element_states<Rule>(hyperparameters, step, entry.one_element_format(), states);
    const TableHead& head = table.head;
    const double scale = head.grad_scale == nullptr ? 1.0 : static_cast<double>(*head.grad_scale);
    const double coefficient = head.decision == nullptr ? 1.0 : head.decision->coefficient;
    const double multiplier = row_of<Rule>(table, entry).grad_multiplier();
    values = {static_cast<T>(multiplier / scale * coefficient), static_cast<T>(head.ema_weight),
              scalars_of<Rule, T>(hyperparameters, step, states)};
  }

  uint32_t row_;
  double step_, before_[kMaxOneElementStates];
};

}  // namespace fused_optim::cuda
