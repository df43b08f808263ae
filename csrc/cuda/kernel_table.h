// A launch's tensors as a kernel reads them: one argument of at most 32,764 bytes.
#pragma once

#include <cstdint>

#include "../norm/decision.h"
#include "../platform.h"
#include "../rules/numeric.h"

namespace fused_optim::cuda {

/// Elements that a block takes at a time; every tensor begins a chunk of its own.
/// Few enough that the blocks of a launch end nearly together.
constexpr int64_t kChunk = 1 << 13;

/// Rows of hyperparameters, then entries, then the layouts of strided tensors, in 8-byte words.
/// It travels by value: there is no copy on the device to go stale, and CUDA graphs capture it.
struct KernelTable {
  static constexpr int kWords = 4088;
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
  uint32_t first_entry;  // its word
  uint32_t arrival;
  uint64_t words[kWords];
};
static_assert(sizeof(KernelTable) <= 32764, "the limit of kernel arguments since CUDA 12.1");

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

/// An entry: its operands, step, number of elements, and packed into one word: chunks up to its
/// end (32 bits), row (16), flags (4), word of its strided layout (12; 0: none). Then the addresses
/// of its scalar states and, where the table says so, of its average.
struct EntryView {
  const uint64_t* words;
  int operands;

  static constexpr uint32_t kAligned = 1;     // every operand begins on a 16-byte boundary
  static constexpr uint32_t kDeviceStep = 2;  // `step` is the address of a float
  static constexpr uint32_t kDTypeShift = 2;  // the other two: the dtype of the scalar states

  FUSED_OPTIM_INLINE static int size(int operands, int scalar_states, bool has_average) {
    return operands + 3 + scalar_states + (has_average ? 1 : 0);
  }

  static uint64_t pack(uint32_t chunk_end, uint32_t row, uint32_t flags, uint32_t layout) {
    return chunk_end | static_cast<uint64_t>(row) << 32 | static_cast<uint64_t>(flags) << 48 |
           static_cast<uint64_t>(layout) << 52;
  }

  FUSED_OPTIM_INLINE void* operand(int i) const { return reinterpret_cast<void*>(words[i]); }
  FUSED_OPTIM_INLINE int64_t numel() const { return static_cast<int64_t>(words[operands + 1]); }
  FUSED_OPTIM_INLINE uint64_t packed() const { return words[operands + 2]; }
  FUSED_OPTIM_INLINE uint32_t chunk_end() const { return static_cast<uint32_t>(packed()); }
  FUSED_OPTIM_INLINE uint32_t row() const { return (packed() >> 32) & 0xffffu; }
  FUSED_OPTIM_INLINE uint32_t flags() const { return (packed() >> 48) & 0xfu; }
  FUSED_OPTIM_INLINE uint32_t layout() const { return packed() >> 52; }

  FUSED_OPTIM_INLINE void* scalar_state(int i) const {
    return reinterpret_cast<void*>(words[operands + 3 + i]);
  }
  FUSED_OPTIM_INLINE void* average(int scalar_states) const { return scalar_state(scalar_states); }
  FUSED_OPTIM_INLINE DType scalar_dtype() const {
    return static_cast<DType>(flags() >> kDTypeShift);
  }
  FUSED_OPTIM_INLINE float* device_step() const {
    return reinterpret_cast<float*>(words[operands]);
  }
  /// The step that is being done. A device's counter is advanced when all blocks have read it.
  FUSED_OPTIM_INLINE double step() const {
    return flags() & kDeviceStep ? static_cast<double>(*device_step() + 1.0f)
                                 : bits_as<double>(words[operands]);
  }
};

/// Where strided operands' elements lie: dimensions, sizes (outermost first in the parameter's
/// memory order), then the strides of each operand.
struct LayoutView {
  const uint64_t* words;

  static constexpr int size(int dims, int operands) { return 1 + dims * (1 + operands); }

  FUSED_OPTIM_INLINE int64_t offset(int operand, int64_t element) const {
    const int dims = static_cast<int>(words[0]);
    const uint64_t* sizes = words + 1;
    const uint64_t* strides = sizes + dims * (1 + operand);
    int64_t offset = 0;
    for (int dim = dims; dim-- > 0; element /= static_cast<int64_t>(sizes[dim]))
      offset += element % static_cast<int64_t>(sizes[dim]) * static_cast<int64_t>(strides[dim]);
    return offset;
  }
};

}  // namespace fused_optim::cuda
