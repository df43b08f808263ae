// What one thread of one block does in a step: plain C++ that runs on the device and on the host.
#pragma once

#include "../rules/rule.h"
#include "../rules/scalar_states.h"
#include "access.h"
#include "kernel_table.h"

namespace fused_optim::cuda {

/// Threads of a block: with 256, every kernel's packs stay in registers (sm_80, sm_90).
constexpr uint32_t kThreads = 256;

/// A thread's place in the launch.
struct Place {
  uint32_t block, thread, num_blocks, num_threads;
};

constexpr int count_states(Variant variant) {
  int count = 0;
  for (; variant != 0; variant >>= 1) count += variant & 1u;
  return count;
}

template <class Rule, Variant variant, class Storage>
class StepKernel {
 public:
  /// Operands of an entry: the parameter, the gradient and the states that are on.
  static constexpr int kOperands = 2 + count_states(variant);
  static constexpr int kHyperparameters = sizeof(typename Rule::Hyperparameters) / sizeof(double);
  static constexpr int kScalarStates = num_scalar_states<Rule>;

  FUSED_OPTIM_INLINE static EntryView entry_at(const KernelTable& table, uint32_t index) {
    const uint32_t size = EntryView::size(kOperands, kScalarStates, has_averages(table));
    return {table.words + table.first_entry + index * size, kOperands};
  }

  FUSED_OPTIM_INLINE static bool has_averages(const KernelTable& table) {
    return table.flags & KernelTable::kAverages;
  }

  /// Every element of every entry belongs to exactly one thread of the launch.
  FUSED_OPTIM_HOST_DEVICE static void run(const Place& place, const KernelTable& table) {
    const bool skipped = is_skipped(table);
    if (skipped && !zeroes_grads(table)) return;
    StepKernel kernel;
    for (uint32_t chunk = place.block; chunk < table.num_chunks; chunk += place.num_blocks) {
      const uint32_t index = find_entry(table, chunk);
      const EntryView entry = entry_at(table, index);
      const uint32_t first_chunk = index == 0 ? 0 : entry_at(table, index - 1).chunk_end();
      const int64_t begin = (chunk - first_chunk) * kChunk;
      const int64_t rest = entry.numel() - begin;
      const int64_t count = rest < kChunk ? rest : kChunk;
      if (skipped) {
        zero_chunk(place, table, entry, begin, count);
      } else {
        kernel.prepare(table, entry);
        kernel.step_chunk(place, table, entry, begin, count);
      }
    }
  }

  /// Advances step counters and scalar states on the device: for one block, after all have run.
  FUSED_OPTIM_HOST_DEVICE static void advance_steps(uint32_t thread, uint32_t num_threads,
                                                    const KernelTable& table) {
    if (is_skipped(table)) return;
    for (uint32_t i = thread; i < table.num_entries; i += num_threads) {
      const EntryView entry = entry_at(table, i);
      if constexpr (kScalarStates > 0) {
        ScalarValues values = load_scalar_states(entry);
        advance_scalar_states<Rule>(hyperparameters_of(table, entry), entry.step(),
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
  using Hyperparameters = typename Rule::Hyperparameters;
  static constexpr int kStates = num_states<Rule>;
  static constexpr int kPerPack = kPackSize<Storage>;
  /// Packs a thread loads before it computes: with two operands or more, four loads in flight.
  static constexpr int kUnroll = 2;

  static constexpr int state_operand(int state) {
    return 2 + count_states(variant & ((1u << state) - 1u));
  }

  /// AMP found an overflow, or the gradients are not finite: nothing of this step is done but
  /// zeroing.
  FUSED_OPTIM_INLINE static bool is_skipped(const KernelTable& table) {
    return (table.found_inf != nullptr && *table.found_inf != 0.0f) ||
           (table.decision != nullptr && table.decision->is_skipped != 0.0);
  }

  FUSED_OPTIM_INLINE static bool zeroes_grads(const KernelTable& table) {
    return table.flags & KernelTable::kZeroGrads;
  }

  /// The entry whose chunks contain this one.
  FUSED_OPTIM_INLINE static uint32_t find_entry(const KernelTable& table, uint32_t chunk) {
    return find_by_chunk(table.num_entries, chunk,
                         [&](uint32_t index) { return entry_at(table, index).chunk_end(); });
  }

  FUSED_OPTIM_INLINE static RowView row_of(const KernelTable& table, const EntryView& entry) {
    return {table.words + entry.row() * RowView::size(kHyperparameters)};
  }

  FUSED_OPTIM_INLINE static Hyperparameters hyperparameters_of(const KernelTable& table,
                                                               const EntryView& entry) {
    const RowView row = row_of(table, entry);
    double values[kHyperparameters];
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < kHyperparameters; ++i) values[i] = row.value(i);
    Hyperparameters hyperparameters;
    memcpy(&hyperparameters, values, sizeof(hyperparameters));
    return hyperparameters;
  }

  FUSED_OPTIM_INLINE static ScalarValues load_scalar_states(const EntryView& entry) {
    ScalarValues values{};
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < kScalarStates; ++i)
      values.before[i] = load_scalar(entry.scalar_state(i), entry.scalar_dtype());
    return values;
  }

  /// Whether scalars_ are this entry's already.
  FUSED_OPTIM_INLINE bool is_prepared(uint32_t row, double step, const ScalarValues& values) const {
    bool same = row == row_ && step == step_;
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < kScalarStates; ++i) same = same && values.before[i] == before_[i];
    return same;
  }

  /// What is the same for all elements of the entry; kept for as long as what it's made of is.
  FUSED_OPTIM_INLINE void prepare(const KernelTable& table, const EntryView& entry) {
    const double step = entry.step();
    ScalarValues values = load_scalar_states(entry);
    if (is_prepared(entry.row(), step, values)) return;
    row_ = entry.row();
    step_ = step;
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < kScalarStates; ++i) before_[i] = values.before[i];
    const Hyperparameters hyperparameters = hyperparameters_of(table, entry);
    if constexpr (kScalarStates > 0)
      advance_scalar_states<Rule>(hyperparameters, step, entry.scalar_dtype(), values);
    scalars_ = scalars_of<Rule, T>(hyperparameters, step, values);
    const double scale = table.grad_scale == nullptr ? 1.0 : static_cast<double>(*table.grad_scale);
    const double coefficient = table.decision == nullptr ? 1.0 : table.decision->coefficient;
    grad_multiplier_ = static_cast<T>(row_of(table, entry).grad_multiplier() / scale * coefficient);
    ema_weight_ = static_cast<T>(table.ema_weight);
  }

  /// An element of this operand; the average is the one after kOperands.
  FUSED_OPTIM_INLINE static Storage* element(const KernelTable& table, const EntryView& entry,
                                             int operand, int64_t index) {
    void* base = operand < kOperands ? entry.operand(operand) : entry.average(kScalarStates);
    const LayoutView layout{table.words + entry.layout()};
    return static_cast<Storage*>(base) + (entry.layout() ? layout.offset(operand, index) : index);
  }

  FUSED_OPTIM_INLINE static Pack<Storage>* packs_at(void* operand, int64_t begin) {
    return reinterpret_cast<Pack<Storage>*>(static_cast<Storage*>(operand) + begin);
  }

  FUSED_OPTIM_INLINE static void zero_chunk(const Place& place, const KernelTable& table,
                                            const EntryView& entry, int64_t begin, int64_t count) {
    int64_t done = 0;
    if (entry.flags() & EntryView::kAligned) {
      const int64_t packs = count / kPerPack;
      for (int64_t i = place.thread; i < packs; i += place.num_threads)
        store(packs_at(entry.operand(1), begin) + i, Pack<Storage>{});
      done = packs * kPerPack;
    }
    for (int64_t i = done + place.thread; i < count; i += place.num_threads)
      *element(table, entry, 1, begin + i) = Storage{};
  }

  FUSED_OPTIM_INLINE void step_chunk(const Place& place, const KernelTable& table,
                                     const EntryView& entry, int64_t begin, int64_t count) const {
    int64_t done = 0;
    if (entry.flags() & EntryView::kAligned) {
      const int64_t packs = count / kPerPack;
      step_packs(place, table, entry, begin, packs);
      done = packs * kPerPack;
    }
    for (int64_t i = done + place.thread; i < count; i += place.num_threads) {
      Storage* elements[kOperands];
      FUSED_OPTIM_UNROLL
      for (int k = 0; k < kOperands; ++k) elements[k] = element(table, entry, k, begin + i);
      Storage values[kOperands];
      FUSED_OPTIM_UNROLL
      for (int k = 0; k < kOperands; ++k) values[k] = *elements[k];
      step_element(values);
      FUSED_OPTIM_UNROLL
      for (int k = 0; k < kOperands; ++k)
        if (k != 1) *elements[k] = values[k];
      if (zeroes_grads(table)) *elements[1] = Storage{};
      if (has_averages(table))
        average_element(*element(table, entry, kOperands, begin + i), values[0]);
    }
  }

  /// 16 bytes at a time: all loads of kUnroll packs, then the arithmetic, then the stores.
  FUSED_OPTIM_INLINE void step_packs(const Place& place, const KernelTable& table,
                                     const EntryView& entry, int64_t begin, int64_t count) const {
    Pack<Storage>* packs[kOperands];
    FUSED_OPTIM_UNROLL
    for (int k = 0; k < kOperands; ++k) packs[k] = packs_at(entry.operand(k), begin);
    const bool averaged = has_averages(table), zeroed = zeroes_grads(table);
    Pack<Storage>* averages = averaged ? packs_at(entry.average(kScalarStates), begin) : nullptr;
    const int64_t stride = place.num_threads;
    for (int64_t i = place.thread; i < count; i += kUnroll * stride) {
      Pack<Storage> loaded[kUnroll][kOperands], average[kUnroll];
      FUSED_OPTIM_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        if (i + u * stride >= count) break;
        FUSED_OPTIM_UNROLL
        for (int k = 0; k < kOperands; ++k) loaded[u][k] = load(packs[k] + i + u * stride);
        if (averaged) average[u] = load(averages + i + u * stride);
      }
      FUSED_OPTIM_UNROLL
      for (int u = 0; u < kUnroll; ++u) {
        if (i + u * stride >= count) break;
        FUSED_OPTIM_UNROLL
        for (int v = 0; v < kPerPack; ++v) {
          Storage values[kOperands];
          FUSED_OPTIM_UNROLL
          for (int k = 0; k < kOperands; ++k) values[k] = loaded[u][k].values[v];
          step_element(values);
          FUSED_OPTIM_UNROLL
          for (int k = 0; k < kOperands; ++k) loaded[u][k].values[v] = values[k];
        }
        FUSED_OPTIM_UNROLL
        for (int k = 0; k < kOperands; ++k)
          if (k != 1) store(packs[k] + i + u * stride, loaded[u][k]);
        if (zeroed) store(packs[1] + i + u * stride, Pack<Storage>{});
        if (!averaged) continue;
        FUSED_OPTIM_UNROLL
        for (int v = 0; v < kPerPack; ++v)
          average_element(average[u].values[v], loaded[u][0].values[v]);
        store(averages + i + u * stride, average[u]);
      }
    }
  }

  /// The average moves towards the parameter as it is stored.
  FUSED_OPTIM_INLINE void average_element(Storage& average, Storage param) const {
    average = to_storage<Storage>(lerp(to_opmath(average), to_opmath(param), ema_weight_));
  }

  FUSED_OPTIM_INLINE void step_element(Storage (&values)[kOperands]) const {
    T param = to_opmath(values[0]);
    T state[kStates] = {};
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < kStates; ++i)
      if (has_state(variant, i)) state[i] = to_opmath(values[state_operand(i)]);
    Rule::template update<variant, T>(param, to_opmath(values[1]) * grad_multiplier_, state,
                                      scalars_);
    values[0] = to_storage<Storage>(param);
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < kStates; ++i)
      if (has_state(variant, i)) values[state_operand(i)] = to_storage<Storage>(state[i]);
  }

  uint32_t row_ = ~0u;
  double step_ = -1.0;
  double before_[kMaxScalarStates] = {};
  T grad_multiplier_{}, ema_weight_{};
  typename Rule::template Scalars<T> scalars_{};
};

}  // namespace fused_optim::cuda
