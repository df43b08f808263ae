// What one thread of one block does in a step: plain C++ that runs on the device and on the host.
#pragma once

#include "cuda/chunk.h"
#include "cuda/entry_scalars.h"
#include "cuda/find_by_chunk.h"
#include "cuda/kernel_table.h"
#include "cuda/place.h"

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
  /// block's on the device, the thread's own on the host.
  FUSED_OPTIM_HOST_DEVICE static void run(const Place& place, const TableView& table,
                                          Scalars& scalars) {
    const TableHead& head = table.head;
    const bool skipped = head.is_skipped();
    if (skipped && !head.zeroes_grads()) return;
    scalars.reset(place);
    StepKernel kernel(place, table, scalars);
    for (uint32_t chunk = place.block; chunk < head.num_chunks; chunk += place.num_blocks) {
      const uint32_t index = find_by_chunk(head.num_entries, chunk,
                                           [&](uint32_t entry) { return table.chunk_end(entry); });
      const EntryView entry = entry_at(table, index);
      const Operands operands(table, entry, formats_at(table, entry), kOneElementStates,
                              chunk - table.first_chunk(index));
      if (skipped)
        kernel.zero_chunk(operands);
      else
        kernel.step_chunk(entry, operands);
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

  FUSED_OPTIM_INLINE StepKernel(const Place& place, const TableView& table, Scalars& scalars)
      : place_(place), table_(table), of_entry_(scalars) {}

  FUSED_OPTIM_INLINE void zero_chunk(const Operands& operands) const {
    for (uint32_t i = place_.thread; i < operands.num_packs(); i += place_.num_threads)
      operands.zero_grad_pack(i);
    for_each_single(operands, [&](char* const* elements) {
      operands.formats().store_element(elements[kGrad], kGrad, T(0));
    });
  }

  FUSED_OPTIM_INLINE void step_chunk(const EntryView& entry, const Operands& operands) {
    step_packs(entry, operands);
    const Formats& formats = operands.formats();
    for_each_single(operands, [&](char* const* elements) {
      T values[kOperands];
      FUSED_OPTIM_UNROLL
      for (int k = kParam; k < kOperands; ++k) values[k] = formats.load_element(elements[k], k);
      step_element(values);
      FUSED_OPTIM_UNROLL
      for (int k = kParam; k < kOperands; ++k)
        if (k != kGrad) formats.store_element(elements[k], k, values[k]);
      if (operands.is_zeroed()) formats.store_element(elements[kGrad], kGrad, T(0));
      if (!operands.is_averaged()) return;
      const T average = formats.load_element(elements[kAverageOperand], kAverageOperand);
      const T param = formats.load_element(elements[kParam], kParam);
      formats.store_element(elements[kAverageOperand], kAverageOperand, averaged(average, param));
    });
  }

  /// Visits the elements that are in no pack: those after the last one, all of strided operands.
  template <class Visit>
  FUSED_OPTIM_INLINE void for_each_single(const Operands& operands, Visit visit) const {
    const uint32_t done = operands.num_packs() * kPack;
    for (uint32_t i = done + place_.thread; i < operands.count(); i += place_.num_threads) {
      char* elements[kOperands + 1];
      operands.locate(i, elements);
      visit(elements);
    }
  }

  /// 16 bytes at a time: all loads of kUnroll packs, then the arithmetic, then the stores. The
  /// chunk's scalars are computed while its first loads are under way. All threads go through the
  /// loop equally often, at least once, as they wait for one another there.
  FUSED_OPTIM_INLINE void step_packs(const EntryView& entry, const Operands& operands) {
    const uint32_t packs = operands.num_packs();
    uint32_t first = 0;
    do {
      const uint32_t i = first + place_.thread;
      typename Operands::Packs loaded;
      operands.load_packs(i, place_.num_threads, loaded);
      if (first == 0) {
        of_entry_.prepare(place_, table_, entry);
        scalars_ = of_entry_.values;
      }
      FUSED_OPTIM_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        if (i + u * place_.num_threads >= packs) break;
        step_pack(operands.formats(), loaded.packs[u], operands.is_averaged());
        operands.store_pack(i + u * place_.num_threads, loaded.packs[u]);
      }
      first += kUnroll * place_.num_threads;
    } while (first < packs);
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

  const Place place_;
  const TableView table_;
  Scalars& of_entry_;
  typename Scalars::Values scalars_{};  // of_entry_'s, in registers
};

}  // namespace fused_optim::cuda
