// What a block does in a step: plain C++ that runs on the device and on the host.
#pragma once

#include "cuda/block.h"
#include "cuda/chunk.h"
#include "cuda/entry_scalars.h"
#include "cuda/find_by_chunk.h"
#include "cuda/kernel_table.h"

namespace fused_optim::cuda {

/// Threads of a block: two blocks with 128 registers a thread fill a multiprocessor's registers.
constexpr uint32_t kThreads = 256;

constexpr int count_states(StateMask states) {
  int count = 0;
  for (; states != 0; states >>= 1) count += states & 1u;
  return count;
}

/// `Element`: a format, or Mixed.
template <class Rule, StateMask states, class Element>
class StepKernel {
 public:
  using Formats = formats_of_t<Element>;
  using Scalars = EntryScalars<Rule, typename Formats::T>;
  /// Operands of an entry: the parameter, the gradient and the states that are on.
  static constexpr int kOperands = kFirstState + count_states(states);
  static constexpr int kHyperparameters = cuda::kHyperparameters<Rule>;
  static constexpr int kOneElementStates = num_one_element_states<Rule>;

  FUSED_OPTIM_INLINE static EntryView entry_at(const TableView& table, uint32_t index) {
    const uint32_t size =
        EntryView::size(kOperands, kOneElementStates, table.head.has_averages(), Formats::kIsMixed);
    return {table.words + table.head.first_entry + index * size, kOperands};
  }

  /// Every element of every entry belongs to exactly one thread of the launch. `scalars`: the
  /// block's.
  template <class Block>
  FUSED_OPTIM_HOST_DEVICE static void run(const Block& block, const TableView& table,
                                          Scalars& scalars) {
    const TableHead& head = table.head;
    const bool skipped = head.is_skipped();
    if (skipped && !head.zeroes_grads()) return;
    scalars.reset(block);
    StepKernel kernel(table, scalars);
    for (uint32_t chunk = block.number; chunk < head.num_chunks; chunk += block.num_blocks) {
      const uint32_t index = find_by_chunk(head.num_entries, chunk,
                                           [&](uint32_t entry) { return table.chunk_end(entry); });
      const EntryView entry = entry_at(table, index);
      const Operands operands(table, entry, formats_at(table, entry), kOneElementStates,
                              chunk - table.first_chunk(index));
      if (skipped)
        kernel.zero_chunk(block, operands);
      else
        kernel.step_chunk(block, entry, operands);
    }
  }

  /// Advances step counters and scalar states on the device: for one block, after all have run.
  FUSED_OPTIM_HOST_DEVICE static void advance_steps(uint32_t thread, uint32_t num_threads,
                                                    const TableView& table) {
    if (table.head.is_skipped()) return;
    for (uint32_t i = thread; i < table.head.num_entries; i += num_threads) {
      const EntryView entry = entry_at(table, i);
      if constexpr (kOneElementStates > 0) {
        OneElementValues values = load_one_element_states<Rule>(entry);
        advance_one_element_states<Rule>(hyperparameters_of<Rule>(table, entry), entry.step(),
                                         entry.one_element_format(), values);
        FUSED_OPTIM_UNROLL
        for (int k = 0; k < kOneElementStates; ++k)
          store_scalar(entry.one_element_state(k), entry.one_element_format(), values.after[k]);
      }
      if (entry.flags() & EntryView::kDeviceStep) *entry.device_step() += 1.0f;
    }
  }

 private:
  using T = typename Formats::T;
  using Operands = Chunk<Formats, kOperands>;
  static constexpr int kStates = num_states<Rule>;
  static constexpr int kAverageOperand = Operands::kAverageOperand;
  static constexpr int kUnroll = Operands::kUnroll;
  static constexpr int kPack = Formats::kPack, kTogether = Formats::kTogether;

  FUSED_OPTIM_INLINE static Formats formats_at(const TableView& table, const EntryView& entry) {
    return Formats(Formats::kIsMixed ? entry.formats(kOneElementStates, table.head.has_averages())
                                     : 0);
  }

  /// A state's place among the operands that are there.
  static constexpr int operand_of(int state) {
    return kFirstState + count_states(states & ((1u << state) - 1u));
  }

  FUSED_OPTIM_INLINE StepKernel(const TableView& table, Scalars& scalars)
      : table_(table), of_entry_(scalars) {}

  template <class Block>
  FUSED_OPTIM_INLINE void zero_chunk(const Block& block, const Operands& operands) const {
    block.each([&](uint32_t thread) {
      for (uint32_t i = thread; i < operands.num_packs(); i += block.num_threads)
        operands.zero_grad_pack(i);
    });
    block.template each_of<Single>(
        first_single(operands), operands.count(), [&](uint32_t i, Single& single) {
          operands.locate(i, single.elements);
          operands.formats().store_element(single.elements[kGrad], kGrad, T(0));
        });
  }

  template <class Block>
  FUSED_OPTIM_INLINE void step_chunk(const Block& block, const EntryView& entry,
                                     const Operands& operands) {
    step_packs(block, entry, operands);
    block.template each_of<Single>(
        first_single(operands), operands.count(),
        [&](uint32_t i, Single& single) { step_single(operands, i, single); },
        [&](uint32_t, const Single& single) { store_single(operands, single); });
  }

  /// 16 bytes at a time: all loads of kUnroll packs, then the arithmetic, then the stores. The
  /// chunk's scalars are computed while its first loads are under way. All threads go through the
  /// loop equally often, at least once, as they wait for one another there.
  template <class Block>
  FUSED_OPTIM_INLINE void step_packs(const Block& block, const EntryView& entry,
                                     const Operands& operands) {
    const uint32_t packs = operands.num_packs();
    uint32_t first = 0;
    do {
      typename Block::template Local<typename Operands::Packs> loaded(block);
      block.each([&](uint32_t thread) {
        operands.load_packs(first + thread, block.num_threads, loaded[thread]);
      });
      if (first == 0) {
        of_entry_.prepare(block, table_, entry);
        scalars_ = of_entry_.values;
      }
      block.template each_up_to<kUnroll>(
          first, packs,
          [&](uint32_t thread, uint32_t, int n) {
            step_pack(operands.formats(), loaded[thread].packs[n], operands.is_averaged());
          },
          [&](uint32_t thread, uint32_t i, int n) {
            operands.store_pack(i, loaded[thread].packs[n]);
          });
      first += kUnroll * block.num_threads;
    } while (first < packs);
  }

  /// The elements that are in no pack follow the last one: all of strided operands.
  FUSED_OPTIM_INLINE static uint32_t first_single(const Operands& operands) {
    return operands.num_packs() * kPack;
  }

  struct Single {
    char* elements[kOperands + 1];
    T values[kOperands];
  };

  FUSED_OPTIM_INLINE void step_single(const Operands& operands, uint32_t i, Single& single) const {
    operands.locate(i, single.elements);
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k)
      single.values[k] = operands.formats().load_element(single.elements[k], k);
    step_element(single.values);
  }

  FUSED_OPTIM_INLINE void store_single(const Operands& operands, const Single& single) const {
    const Formats& formats = operands.formats();
    char* const(&elements)[kOperands + 1] = single.elements;
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k)
      if (k != kGrad) formats.store_element(elements[k], k, single.values[k]);
    if (operands.is_zeroed()) formats.store_element(elements[kGrad], kGrad, T(0));
    if (!operands.is_averaged()) return;
    const T average = formats.load_element(elements[kAverageOperand], kAverageOperand);
    const T param = formats.load_element(elements[kParam], kParam);
    formats.store_element(elements[kAverageOperand], kAverageOperand, averaged(average, param));
  }

  FUSED_OPTIM_INLINE void step_pack(const Formats& formats, Pack (&packs)[kOperands + 1],
                                    bool is_averaged) const {
    FUSED_OPTIM_UNROLL
    for (int v = 0; v < kPack; v += kTogether) {
      T values[kTogether][kOperands], encoded[kTogether];
      FUSED_OPTIM_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        FUSED_OPTIM_UNROLL
        for (int k = kParam; k < kOperands; ++k)
          values[j][k] = formats.decode_at(packs[k], k, v + j);
        step_element(values[j]);
      }
      FUSED_OPTIM_UNROLL
      for (int k = kParam; k < kOperands; ++k) {
        if (k == kGrad) continue;
        FUSED_OPTIM_UNROLL
        for (int j = 0; j < kTogether; ++j) encoded[j] = values[j][k];
        formats.encode_at(packs[k], k, v, encoded);
      }
    }
    if (is_averaged) average_pack(formats, packs[kAverageOperand], packs[kParam]);
  }

  FUSED_OPTIM_INLINE void average_pack(const Formats& formats, Pack& average,
                                       const Pack& param) const {
    FUSED_OPTIM_UNROLL
    for (int v = 0; v < kPack; v += kTogether) {
      T encoded[kTogether];
      FUSED_OPTIM_UNROLL
      for (int j = 0; j < kTogether; ++j)
        encoded[j] = averaged(formats.decode_at(average, kAverageOperand, v + j),
                              formats.decode_at(param, kParam, v + j));
      formats.encode_at(average, kAverageOperand, v, encoded);
    }
  }

  /// The average moves towards the parameter as it is stored.
  FUSED_OPTIM_INLINE T averaged(T average, T param) const {
    return lerp(average, param, scalars_.ema_weight);
  }

  /// One element's step: its operands' values before, then after.
  FUSED_OPTIM_INLINE void step_element(T (&values)[kOperands]) const {
    T state[kStates] = {};
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < kStates; ++i)
      if (has_state(states, i)) state[i] = values[operand_of(i)];
    Rule::template update<states, T>(values[kParam], values[kGrad] * scalars_.grad_multiplier,
                                     state, scalars_.of_rule);
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < kStates; ++i)
      if (has_state(states, i)) values[operand_of(i)] = state[i];
  }

  const TableView table_;
  Scalars& of_entry_;
  typename Scalars::Values scalars_{};  // of_entry_'s, in registers
};

}  // namespace fused_optim::cuda
