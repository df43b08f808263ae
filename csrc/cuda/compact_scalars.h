// What is the same for all elements of a compact entry: its scalars, and what random bits are made
// of.
#pragma once

#include "cuda/entry_scalars.h"
#include "cuda/step_element.h"

namespace fused_optim::cuda {

template <class Rule, StateMask states>
struct CompactScalars : EntryScalars<Rule, float> {
  using Base = EntryScalars<Rule, float>;

  RandomBits random[kOperandsWith<states>];

  template <class Block>
  FUSED_OPTIM_INLINE void reset(const Block& block) {
    block.once([&] { made_for_ = nullptr; });
    Base::reset(block);
  }

  template <class Block>
  FUSED_OPTIM_INLINE void prepare(const Block& block, const TableView& table,
                                  const EntryView& entry, const CompactView& compact) {
    Base::prepare(block, table, entry);
    if (made_for_ == entry.words) return;
    block.wait();  // others may still read what is there
    block.once([&] { make(entry, compact); });
    block.wait();
  }

 private:
  FUSED_OPTIM_INLINE void make(const EntryView& entry, const CompactView& compact) {
    constexpr bool kHasStep = has_step<Rule>();
    made_for_ = entry.words;
    const double step = kHasStep ? entry.step() : compact.counted_step();
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperandsWith<states>; ++k)
      random[k] = RandomBits(random_key(compact.key(), step, number_of(k)));
  }

  /// The operands' numbers in step/operands.h, which random bits are made of, four bits each.
  static constexpr uint32_t numbers() {
    uint32_t numbers = kParam | kGrad << 4;
    for (int state = 0; state < num_states<Rule>; ++state)
      if (has_state(states, state))
        numbers |= static_cast<uint32_t>(state_operand(state)) << (4 * place_of<states>(state));
    return numbers;
  }
  FUSED_OPTIM_INLINE static int number_of(int operand) {
    constexpr uint32_t kNumbers = numbers();
    return static_cast<int>((kNumbers >> (4 * operand)) & 15u);
  }

  const uint64_t* made_for_;
};

}  // namespace fused_optim::cuda
