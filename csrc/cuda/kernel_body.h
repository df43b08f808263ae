// What a block does in a step: plain C++ that runs on the device and on the host.
#pragma once

#include "cuda/block.h"
#include "cuda/compact_steps.h"
#include "cuda/entry_scalars.h"
#include "cuda/find_by_chunk.h"
#include "cuda/kernel_table.h"
#include "cuda/pack_steps.h"

namespace fused_optim::cuda {

/// Threads of a block: two blocks with 128 registers a thread fill a multiprocessor's registers.
constexpr uint32_t kThreads = 256;

/// How the elements of a chunk are stepped.
template <class Rule, StateMask states, class Element>
struct StepsOf {
  using type = PackSteps<Rule, states, Element>;
};
template <class Rule, StateMask states>
struct StepsOf<Rule, states, Compact> {
  using type = CompactSteps<Rule, states>;
};

/// `Element`: a format, Mixed or Compact.
template <class Rule, StateMask states, class Element>
class StepKernel {
  using Steps = typename StepsOf<Rule, states, Element>::type;
  using Formats = typename Steps::Formats;

 public:
  using Scalars = typename Steps::Scalars;
  static constexpr int kOperands = kOperandsWith<states>;
  static constexpr int kHyperparameters = cuda::kHyperparameters<Rule>;
  static constexpr int kOneElementStates = num_one_element_states<Rule>;
  static constexpr bool kIsCompact = Formats::kKind == KernelKind::Compact;
  static constexpr bool kHasStep = has_step<Rule>();

  FUSED_OPTIM_INLINE static EntryView entry_at(const TableView& table, uint32_t index) {
    const uint32_t size = EntryView::size(kOperands, kOneElementStates, table.head.has_averages(),
                                          Formats::kKind, kHasStep);
    return {table.words + table.head.first_entry + index * size, kOperands};
  }

  /// What an entry has beside its operands, where it is compact.
  FUSED_OPTIM_INLINE static CompactView compact_at(const TableView& table, const EntryView& entry) {
    return entry.compact(kOneElementStates, table.head.has_averages());
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
    Steps steps(table, scalars);
    for (uint32_t chunk = block.number; chunk < head.num_chunks; chunk += block.num_blocks) {
      const uint32_t index = find_by_chunk(head.num_entries, chunk,
                                           [&](uint32_t entry) { return table.chunk_end(entry); });
      const EntryView entry = entry_at(table, index);
      const typename Steps::Operands operands(table, entry, formats_at(table, entry),
                                              kOneElementStates, chunk - table.first_chunk(index));
      if (skipped)
        steps.zero_chunk(block, operands);
      else
        steps.step_chunk(block, entry, operands);
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
      if constexpr (kIsCompact && !kHasStep) {
        const CompactView compact = compact_at(table, entry);
        if (compact.has_device_counter())
          *compact.device_counter() = next_count(*compact.device_counter());
      }
    }
  }

 private:
  FUSED_OPTIM_INLINE static Formats formats_at(const TableView& table, const EntryView& entry) {
    return Formats(Formats::kKind == KernelKind::Uniform
                       ? 0
                       : entry.formats(kOneElementStates, table.head.has_averages()));
  }
};

}  // namespace fused_optim::cuda
