// What one thread of one block does in a step: plain C++ that runs on the device and on the host.
#pragma once

#include "cuda/chunk.h"
#include "cuda/entry_scalars.h"
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

template <class Rule, StateMask states, class Storage>
class StepKernel {
 public:
  using Scalars = EntryScalars<Rule, opmath_t<Storage>>;
  /// Operands of an entry: the parameter, the gradient and the states that are on.
  static constexpr int kOperands = kFirstState + count_states(states);
  static constexpr int kHyperparameters = cuda::kHyperparameters<Rule>;
  static constexpr int kScalarStates = num_scalar_states<Rule>;

  FUSED_OPTIM_INLINE static EntryView entry_at(const TableView& table, uint32_t index) {
    const uint32_t size = EntryView::size(kOperands, kScalarStates, table.head.has_averages());
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
      const Operands operands(table, entry, kScalarStates, chunk - table.first_chunk(index));
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
      if constexpr (kScalarStates > 0) {
        ScalarValues values = load_scalar_states<Rule>(entry);
        advance_scalar_states<Rule>(hyperparameters_of<Rule>(table, entry), entry.step(),
                                    entry.scalar_dtype(), values);
        FUSED_OPTIM_UNROLL
        for (int k = 0; k < kScalarStates; ++k)
          store_scalar(entry.scalar_state(k), entry.scalar_dtype(), values.after[k]);
      }
      if (entry.flags() & EntryView::kDeviceStep) *entry.device_step() += 1.0f;
    }
  }

 private:
  using T = opmath_t<Storage>;
  using Operands = Chunk<Storage, kOperands>;
  static constexpr int kStates = num_states<Rule>;
  static constexpr int kAverageOperand = Operands::kAverageOperand;
  static constexpr int kUnroll = Operands::kUnroll;

  static constexpr int state_operand(int state) {
    return kFirstState + count_states(states & ((1u << state) - 1u));
  }

  FUSED_OPTIM_INLINE StepKernel(const Place& place, const TableView& table, Scalars& scalars)
      : place_(place), table_(table), of_entry_(scalars) {}

  FUSED_OPTIM_INLINE void zero_chunk(const Operands& operands) const {
    for (uint32_t i = place_.thread; i < operands.num_packs(); i += place_.num_threads)
      operands.zero_grad_pack(i);
    for_each_single(operands, [](Storage* const* elements) { *elements[kGrad] = Storage{}; });
  }

  FUSED_OPTIM_INLINE void step_chunk(const EntryView& entry, const Operands& operands) {
    step_packs(entry, operands);
    for_each_single(operands, [&](Storage* const* elements) {
      T values[kOperands];
      FUSED_OPTIM_UNROLL
      for (int k = 0; k < kOperands; ++k) values[k] = to_opmath(*elements[k]);
      step_element(values);
      FUSED_OPTIM_UNROLL
      for (int k = 0; k < kOperands; ++k)
        if (k != kGrad) *elements[k] = to_storage<Storage>(values[k]);
      if (operands.is_zeroed()) *elements[kGrad] = Storage{};
      if (!operands.is_averaged()) return;
      Storage& average = *elements[kAverageOperand];
      average = to_storage<Storage>(averaged(to_opmath(average), to_opmath(*elements[kParam])));
    });
  }

  /// Visits the elements that are in no pack: those after the last one, all of strided operands.
  template <class Visit>
  FUSED_OPTIM_INLINE void for_each_single(const Operands& operands, Visit visit) const {
    const uint32_t done = operands.num_packs() * kPackSize<Storage>;
    for (uint32_t i = done + place_.thread; i < operands.count(); i += place_.num_threads) {
      Storage* elements[kOperands + 1];
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
        step_pack(loaded.packs[u], operands.is_averaged());
        operands.store_pack(i + u * place_.num_threads, loaded.packs[u]);
      }
      first += kUnroll * place_.num_threads;
    } while (first < packs);
  }

  FUSED_OPTIM_INLINE void step_pack(Pack (&packs)[kOperands + 1], bool is_averaged) const {
    FUSED_OPTIM_UNROLL
    for (int v = 0; v < kPackSize<Storage>; v += kEncoded<Storage>) {
      T values[kEncoded<Storage>][kOperands], encoded[kEncoded<Storage>];
      FUSED_OPTIM_UNROLL
      for (int j = 0; j < kEncoded<Storage>; ++j) {
        FUSED_OPTIM_UNROLL
        for (int k = 0; k < kOperands; ++k) values[j][k] = decode<Storage>(packs[k], v + j);
        step_element(values[j]);
      }
      FUSED_OPTIM_UNROLL
      for (int k = 0; k < kOperands; ++k) {
        if (k == kGrad) continue;
        FUSED_OPTIM_UNROLL
        for (int j = 0; j < kEncoded<Storage>; ++j) encoded[j] = values[j][k];
        encode<Storage>(packs[k], v, encoded);
      }
    }
    if (is_averaged) average_pack(packs[kAverageOperand], packs[kParam]);
  }

  FUSED_OPTIM_INLINE void average_pack(Pack& average, const Pack& param) const {
    FUSED_OPTIM_UNROLL
    for (int v = 0; v < kPackSize<Storage>; v += kEncoded<Storage>) {
      T encoded[kEncoded<Storage>];
      FUSED_OPTIM_UNROLL
      for (int j = 0; j < kEncoded<Storage>; ++j)
        encoded[j] = averaged(decode<Storage>(average, v + j), decode<Storage>(param, v + j));
      encode<Storage>(average, v, encoded);
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
      if (has_state(states, i)) state[i] = values[state_operand(i)];
    Rule::template update<states, T>(values[kParam], values[kGrad] * scalars_.grad_multiplier,
                                     state, scalars_.of_rule);
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < kStates; ++i)
      if (has_state(states, i)) values[state_operand(i)] = state[i];
  }

  const Place place_;
  const TableView table_;
  Scalars& of_entry_;
  typename Scalars::Values scalars_{};  // of_entry_'s, in registers
};

}  // namespace fused_optim::cuda
