// The steps of a chunk whose operands have a part beside their tensors, or are rounded
// stochastically: by groups of neighbours, so that a few threads have a block of codes.
#pragma once

#include "cuda/block.h"
#include "cuda/compact_chunk.h"
#include "cuda/compact_scalars.h"
#include "cuda/step_element.h"

namespace fused_optim::cuda {

template <class Rule, StateMask states>
class CompactSteps {
  /// The operands whose states are moments of this kind, a bit each.
  static constexpr unsigned operands_of(Moment moment) {
    unsigned operands = 0;
    int state = 0;
    for (const StateSpec& spec : Rule::states) {
      if (!spec.is_like_param()) continue;
      if (has_state(states, state) && spec.moment == moment)
        operands |= 1u << place_of<states>(state);
      ++state;
    }
    return operands;
  }

 public:
  using Formats = CompactFormats<operands_of(Moment::First), operands_of(Moment::Second)>;
  using Scalars = CompactScalars<Rule, states>;
  static constexpr int kOperands = kOperandsWith<states>;
  using Operands = CompactChunk<Formats, kOperands>;

  FUSED_OPTIM_INLINE CompactSteps(const TableView& table, Scalars& scalars)
      : table_(table), of_entry_(scalars) {}

  template <class Block>
  FUSED_OPTIM_INLINE void zero_chunk(const Block& block, const Operands& operands) const {
    const typename Operands::Elements elements = operands.elements();
    block.each([&](uint32_t thread) {
      for (uint32_t i = thread; i < operands.count(); i += block.num_threads)
        operands.zero_grad(elements, i);
    });
  }

  template <class Block>
  FUSED_OPTIM_INLINE void step_chunk(const Block& block, const EntryView& entry,
                                     const Operands& operands) {
    step_groups(block, entry, operands);
    if (operands.num_grouped() < operands.count()) step_elements(block, operands);
  }

 private:
  static constexpr int kAverageOperand = Operands::kAverageOperand;
  static constexpr int kGroup = Operands::kGroup;
  /// Threads that have a block of codes, by groups and element by element.
  static constexpr int kThreadsOfGroups = static_cast<int>(kBlock) / kGroup;
  static constexpr int kThreadsOfElements = 32;

  /// What a thread has of some elements between phases.
  template <int kElements>
  struct Held {
    typename Operands::template Stored<kElements> stored;
    float values[kOperands][kElements];
    uint32_t largest[kOperands];  // bits of the largest magnitudes, then of the block's
  };

  /// All loads of a group of each operand, then the arithmetic, then the stores. The chunk's
  /// scalars are computed while its first loads are under way. All threads go through the loop
  /// equally often, at least once, as they wait for one another there. What a thread holds is set
  /// and computed with whether it has a group or not: registers that are set in a branch alone are
  /// taken from everything else.
  template <class Block>
  FUSED_OPTIM_INLINE void step_groups(const Block& block, const EntryView& entry,
                                      const Operands& operands) {
    const uint32_t end = operands.num_grouped();
    uint32_t first = 0;
    FUSED_OPTIM_KEEP_LOOP
    do {
      typename Block::template Local<Held<kGroup>> held(block);
      const auto group = [&](uint32_t thread) { return first + thread * kGroup; };
      block.each([&](uint32_t thread) {
        held[thread].stored = {};
        if (group(thread) < end) operands.load(group(thread), held[thread].stored);
      });
      if (first == 0) of_entry_.prepare(block, table_, entry, operands.compact());
      block.each([&](uint32_t thread) {
        begin_largest(held[thread]);
        step(operands, held[thread]);
      });
      share_largest<kThreadsOfGroups>(block, operands, held);
      block.each([&](uint32_t thread) {
        encode(operands, group(thread), held[thread], held[thread].stored);
        if (group(thread) < end) operands.store(group(thread), held[thread].stored);
      });
      first += kGroup * block.num_threads;
    } while (first < end);
  }

  /// The elements that are in no group, a few of a block for each thread: once to know the largest
  /// ones, once more to store them all.
  template <class Block>
  FUSED_OPTIM_INLINE void step_elements(const Block& block, const Operands& operands) {
    constexpr uint32_t kEach = static_cast<uint32_t>(kBlock) / kThreadsOfElements;
    const typename Operands::Elements elements = operands.elements();
    FUSED_OPTIM_KEEP_LOOP
    for (uint32_t first = operands.num_grouped(); first < operands.count();
         first += kEach * block.num_threads) {
      typename Block::template Local<Held<1>> held(block);
      const auto element = [&](uint32_t thread, uint32_t n) {
        const uint32_t warp = thread / kThreadsOfElements * kThreadsOfElements;
        return first + warp * kEach + n * kThreadsOfElements + (thread - warp);
      };
      const auto each_element = [&](uint32_t thread, auto visit) {
        FUSED_OPTIM_KEEP_LOOP
        for (uint32_t n = 0; n < kEach; ++n) {
          const uint32_t i = element(thread, n);
          if (i >= operands.count()) break;
          operands.load(elements, i, held[thread].stored);
          step(operands, held[thread]);
          visit(i);
        }
      };
      block.each([&](uint32_t thread) {
        held[thread].stored = {};
        begin_largest(held[thread]);
        if (element(thread, 0) >= operands.count()) return;
        operands.load_scales(element(thread, 0), held[thread].stored);
        each_element(thread, [](uint32_t) {});
      });
      share_largest<kThreadsOfElements>(block, operands, held);
      block.each([&](uint32_t thread) {
        each_element(thread, [&](uint32_t i) {
          auto stored = held[thread].stored;  // whose scales serve the next one, too
          encode(operands, i, held[thread], stored);
          operands.store(elements, i, stored);
        });
      });
    }
  }

  template <int kElements>
  FUSED_OPTIM_INLINE static void begin_largest(Held<kElements>& held) {
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k) held.largest[k] = 0;
  }

  template <int kElements>
  FUSED_OPTIM_INLINE void step(const Operands& operands, Held<kElements>& held) const {
    const typename Scalars::Values scalars = of_entry_.values;
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k)
      operands.formats().decode(k, held.stored.operands[k], held.values[k]);
    FUSED_OPTIM_UNROLL
    for (int v = 0; v < kElements; ++v) {
      float values[kOperands];
      FUSED_OPTIM_UNROLL
      for (int k = kParam; k < kOperands; ++k) values[k] = held.values[k][v];
      step_element<Rule, states>(values, scalars);
      FUSED_OPTIM_UNROLL
      for (int k = kParam; k < kOperands; ++k) held.values[k][v] = values[k];
    }
    FUSED_OPTIM_UNROLL
    for (int k = kFirstState; k < kOperands; ++k)
      if (operands.formats().is_coded(k)) note_largest(held.values[k], held.largest[k]);
  }

  /// By its bits, of which a NaN's are larger than all.
  template <int kElements>
  FUSED_OPTIM_INLINE static void note_largest(const float (&values)[kElements], uint32_t& largest) {
    FUSED_OPTIM_UNROLL
    for (int v = 0; v < kElements; ++v) {
      const uint32_t bits = bits_as<uint32_t>(values[v]) & 0x7fffffffu;
      largest = bits > largest ? bits : largest;
    }
  }

  template <int kThreadsOfBlock, class Block, class Locals>
  FUSED_OPTIM_INLINE static void share_largest(const Block& block, const Operands& operands,
                                               Locals& held) {
    FUSED_OPTIM_UNROLL
    for (int k = kFirstState; k < kOperands; ++k)
      if (operands.formats().is_coded(k))
        block.template largest_among<kThreadsOfBlock>(
            held, [k](auto& of_thread) -> uint32_t& { return of_thread.largest[k]; });
  }

  /// Element i is the first one.
  template <int kElements>
  FUSED_OPTIM_INLINE void encode(const Operands& operands, uint32_t i, Held<kElements>& held,
                                 typename Operands::template Stored<kElements>& to) const {
    const Formats& formats = operands.formats();
    StoredElements<kElements>(&stored)[kOperands + 1] = to.operands;
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k)
      if (k != kGrad)
        formats.encode(k, held.values[k], rounding_of(operands, k, i, held.largest[k]), stored[k]);
    if (!operands.is_averaged()) return;
    // The average moves towards the parameter as it is stored.
    float (&params)[kElements] = held.values[kParam];
    float averages[kElements];
    formats.decode(kParam, stored[kParam], params);
    formats.decode(kAverageOperand, stored[kAverageOperand], averages);
    FUSED_OPTIM_UNROLL
    for (int v = 0; v < kElements; ++v)
      averages[v] = lerp(averages[v], params[v], of_entry_.values.ema_weight);
    formats.encode(kAverageOperand, averages, {false, RandomBits(0), 0, 0},
                   stored[kAverageOperand]);
  }

  FUSED_OPTIM_INLINE Rounding rounding_of(const Operands& operands, int operand, uint32_t i,
                                          uint32_t largest) const {
    return {operands.compact().is_stochastic(operand), of_entry_.random[operand],
            operands.index_of(i), largest};
  }

  const TableView table_;
  Scalars& of_entry_;  // read where it is used: registers are few
};

}  // namespace fused_optim::cuda
