// A launch's tensors as a kernel reads them: one argument, of 4,096 or of 32,760 bytes.
#pragma once

#include <cstdint>

#include "base/platform.h"
#include "base/random.h"
#include "reduce/clip_and_skip.h"
#include "step/table.h"

namespace fused_optim::cuda {

/// Elements that a block takes at a time; every tensor begins a chunk of its own.
/// Few enough that the blocks of a launch end nearly together.
constexpr int64_t kChunk = 1 << 13;

/// What is the same for all tensors of a launch, and what its table consists of.
struct TableHead {
  static constexpr uint32_t kZeroGrads = 1;  // flags
  static constexpr uint32_t kAverages = 2;   // each entry has an average
  /// Values of `arrival`: below kArrivals, the counter by which the last block to be through knows
  /// that it is, and advances the steps.
  static constexpr uint32_t kArrivals = 4096;
  static constexpr uint32_t kAllArrived = kArrivals;  // a launch of one block after all others
  static constexpr uint32_t kNoStepsToAdvance = kArrivals + 1;

  const float* found_inf;    // on the device, or nullptr; any value but 0 skips the step
  const float* grad_scale;   // on the device, or nullptr
  const Decision* decision;  // likewise
  double ema_weight;
  uint32_t flags;
  uint32_t num_entries;
  uint32_t num_chunks;
  uint32_t first_row, first_entry;  // their words
  uint32_t arrival;

  FUSED_OPTIM_INLINE bool zeroes_grads() const { return flags & kZeroGrads; }
  FUSED_OPTIM_INLINE bool has_averages() const { return flags & kAverages; }

  /// AMP found an overflow, or the gradients are not finite: nothing of this step is done but
  /// zeroing.
  FUSED_OPTIM_INLINE bool is_skipped() const {
    return (found_inf != nullptr && *found_inf != 0.0f) ||
           (decision != nullptr && decision->is_skipped != 0.0);
  }
};

/// The head, then in words of 8 bytes: the entries' chunk ends, rows of hyperparameters, entries,
/// the layouts of strided tensors. It travels by value: there is no copy on the device to go stale,
/// and CUDA graphs capture it.
template <int kNumWords>
struct TableOf {
  static constexpr int kItems = kNumWords;

  TableHead head;
  uint64_t words[kItems];

  uint64_t* items() { return words; }
};

using KernelTable = TableOf<4088>;
static_assert(sizeof(KernelTable) <= 32764, "the limit of kernel arguments since CUDA 12.1");

/// Each launch copies its whole argument and sends it to the device, so that few tensors travel in
/// a smaller one: 66 of Adam's.
using SmallKernelTable = TableOf<505>;
static_assert(sizeof(SmallKernelTable) <= 4096, "the limit of kernel arguments before CUDA 12.1");

/// A table of any size.
struct TableView {
  const TableHead& head;
  const uint64_t* words;

  FUSED_OPTIM_INLINE TableView(const TableHead& table_head, const uint64_t* table_words)
      : head(table_head), words(table_words) {}

  template <int kWords>
  FUSED_OPTIM_INLINE explicit TableView(const TableOf<kWords>& table)
      : TableView(table.head, table.words) {}

  /// Chunks up to the end of this entry. Two to a word, so that a search touches few cache lines.
  FUSED_OPTIM_INLINE uint32_t chunk_end(uint32_t entry) const {
    return static_cast<uint32_t>(words[entry / 2] >> (entry % 2 * 32));
  }
  FUSED_OPTIM_INLINE uint32_t first_chunk(uint32_t entry) const {
    return entry == 0 ? 0 : chunk_end(entry - 1);
  }
};

/// A row: maximize's sign (over AMP's scale where the host knows it), which values are addresses
/// of device tensors and which of these hold doubles, and the values.
struct RowView {
  const uint64_t* words;

  static constexpr int size(int hyperparameters) { return 2 + hyperparameters; }

  FUSED_OPTIM_INLINE double grad_multiplier() const { return bits_as<double>(words[0]); }

  FUSED_OPTIM_INLINE double value(int i) const {
    const uint64_t word = words[2 + i];
    if (!((words[1] >> i) & 1u)) return bits_as<double>(word);
    const bool is_double = (words[1] >> (32 + i)) & 1u;
    return is_double ? *reinterpret_cast<const double*>(word)
                     : static_cast<double>(*reinterpret_cast<const float*>(word));
  }
};

/// What an entry of compact formats has beside: the sides of all operands but the gradient, the key
/// of its random bits, and in one word: the number of its first element (32 bits), which operands
/// are rounded stochastically (a bit each), and whether its counter is on the device (1). Where the
/// rule has no step the counter follows: its address, or the step that is being done.
struct CompactView {
  const uint64_t* words;
  int operands;

  static constexpr uint64_t kDeviceCounter = uint64_t{1} << 40;

  FUSED_OPTIM_INLINE static constexpr int size(int operands, bool has_step) {
    return operands - 1 + 2 + (has_step ? 0 : 1);
  }
  static uint64_t word_of(uint32_t first_index, uint32_t stochastic, bool has_device_counter) {
    return first_index | static_cast<uint64_t>(stochastic) << 32 |
           (has_device_counter ? kDeviceCounter : 0);
  }

  FUSED_OPTIM_INLINE char* side(int operand) const {
    return reinterpret_cast<char*>(words[operand == kParam ? 0 : operand - 1]);
  }
  FUSED_OPTIM_INLINE uint64_t key() const { return words[operands - 1]; }
  FUSED_OPTIM_INLINE uint32_t first_index() const { return static_cast<uint32_t>(last_word()); }
  FUSED_OPTIM_INLINE bool is_stochastic(int operand) const {
    return (last_word() >> (32 + operand)) & 1u;
  }
  FUSED_OPTIM_INLINE bool has_device_counter() const { return last_word() & kDeviceCounter; }
  FUSED_OPTIM_INLINE float* device_counter() const {
    return reinterpret_cast<float*>(words[operands + 1]);
  }
  /// The step that is being done, of rules that have none themselves.
  FUSED_OPTIM_INLINE double counted_step() const {
    return has_device_counter() ? static_cast<double>(next_count(*device_counter()))
                                : bits_as<double>(words[operands + 1]);
  }

 private:
  FUSED_OPTIM_INLINE uint64_t last_word() const { return words[operands]; }
};

/// An entry: its operands, step, number of elements, and in one word: row (16 bits), word
/// of its strided layout (16; 0: none), flags (8), operands off 16-byte boundaries (a bit each).
/// Then the addresses of its states of one element and, where the table says so, of its average;
/// at last, for kernels of mixed and of compact formats, the formats, and for the latter a
/// CompactView.
struct EntryView {
  const uint64_t* words;
  int operands;

  static constexpr uint32_t kDeviceStep = 1;  // `step` is the address of a float
  /// Of the flags above the first: the format of the states of one element.
  static constexpr uint32_t kFormatShift = 1;
  static_assert(kNumFormats <= 1 << (8 - kFormatShift));

  // Words after those of the operands.
  static constexpr int kStepWord = 0, kNumelWord = 1, kLastWord = 2, kFixedWords = 3;

  FUSED_OPTIM_INLINE static int size(int operands, int one_element_states, bool has_average,
                                     KernelKind kind, bool has_step) {
    return operands + kFixedWords + one_element_states + (has_average ? 1 : 0) +
           (kind == KernelKind::Uniform ? 0 : 1) +
           (kind == KernelKind::Compact ? CompactView::size(operands, has_step) : 0);
  }

  static uint64_t word_of(uint32_t row, uint32_t layout, uint32_t flags, uint32_t unaligned) {
    return row | static_cast<uint64_t>(layout) << 16 | static_cast<uint64_t>(flags) << 32 |
           static_cast<uint64_t>(unaligned) << 40;
  }

  FUSED_OPTIM_INLINE void* operand(int i) const { return reinterpret_cast<void*>(words[i]); }
  FUSED_OPTIM_INLINE int64_t numel() const {
    return static_cast<int64_t>(words[operands + kNumelWord]);
  }
  FUSED_OPTIM_INLINE uint64_t last_word() const { return words[operands + kLastWord]; }
  FUSED_OPTIM_INLINE uint32_t row() const { return last_word() & 0xffffu; }
  FUSED_OPTIM_INLINE uint32_t layout() const { return (last_word() >> 16) & 0xffffu; }
  FUSED_OPTIM_INLINE uint32_t flags() const { return (last_word() >> 32) & 0xffu; }
  /// The average's bit is the one after the operands'.
  FUSED_OPTIM_INLINE uint32_t unaligned() const { return (last_word() >> 40) & 0xffu; }

  FUSED_OPTIM_INLINE void* one_element_state(int i) const {
    return reinterpret_cast<void*>(words[operands + kFixedWords + i]);
  }
  FUSED_OPTIM_INLINE void* average(int one_element_states) const {
    return one_element_state(one_element_states);
  }
  /// Where the launch's operands are of several formats: 8 bits of each, the average's last.
  FUSED_OPTIM_INLINE uint64_t formats(int one_element_states, bool has_average) const {
    return words[operands + kFixedWords + one_element_states + (has_average ? 1 : 0)];
  }
  FUSED_OPTIM_INLINE CompactView compact(int one_element_states, bool has_average) const {
    return {words + operands + kFixedWords + one_element_states + (has_average ? 1 : 0) + 1,
            operands};
  }
  FUSED_OPTIM_INLINE Format one_element_format() const {
    return static_cast<Format>(flags() >> kFormatShift);
  }
  FUSED_OPTIM_INLINE float* device_step() const {
    return reinterpret_cast<float*>(words[operands + kStepWord]);
  }
  /// The step that is being done. A device's counter is advanced when all blocks have read it.
  FUSED_OPTIM_INLINE double step() const {
    return flags() & kDeviceStep ? static_cast<double>(*device_step() + 1.0f)
                                 : bits_as<double>(words[operands + kStepWord]);
  }
};

/// Where strided operands' elements lie: dimensions, sizes (outermost first in the parameter's
/// memory order), then the strides of each operand.
struct LayoutView {
  const uint64_t* words;

  static constexpr int size(int dims, int operands) { return 1 + dims * (1 + operands); }

  FUSED_OPTIM_INLINE int dims() const { return static_cast<int>(words[0]); }
  FUSED_OPTIM_INLINE uint64_t size_of(int dim) const { return words[1 + dim]; }
  FUSED_OPTIM_INLINE int64_t stride(int operand, int dim) const {
    return static_cast<int64_t>(words[1 + dims() * (1 + operand) + dim]);
  }

  /// Calls visit(dim, index) for each index of this element's multi-index, which is computed once
  /// for all operands. `Integer`: 32 bits where the number of elements fits, as GPUs take several
  /// times longer to divide 64.
  template <class Integer, class Visit>
  FUSED_OPTIM_INLINE void for_each_index(Integer element, Visit visit) const {
    FUSED_OPTIM_KEEP_LOOP
    for (int dim = dims(); dim-- > 1;) {
      const auto size = static_cast<Integer>(size_of(dim));
      const Integer outer = element / size;
      visit(dim, static_cast<int64_t>(element - outer * size));
      element = outer;
    }
    visit(0, static_cast<int64_t>(element));
  }
};

}  // namespace fused_optim::cuda
