// The checked description of one step: what gather produces and the engines consume.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/device.h"
#include "base/random.h"
#include "reduce/clip_and_skip.h"
#include "rules/rule.h"
#include "step/operands.h"

namespace fused_optim {

/// One group's hyperparameters on one device, in the order of the rule's list.
struct HyperparameterRow {
  double values[kMaxHyperparameters];
  const void* addresses[kMaxHyperparameters];  // of values on the device, else nullptr
  uint32_t are_doubles;                        // a bit for each address: double, else float
  double sign;                                 // of gradients: -1 where the step maximizes
};

/// What the host doesn't know because it is on the device, where kernels read it; else nullptr.
struct DeviceInputs {
  const float* grad_scale = nullptr;  // AMP's
  const float* found_inf = nullptr;   // AMP's
  const Decision* decision = nullptr;
};

/// A tensor's state of one element. Where the kernel advances it on the device, its values are not
/// read.
struct OneElementState {
  void* data;
  Format format;
  bool is_on_device;
  double before, after;  // the step that is done
};

/// Which of CUDA's kernels step an entry: those of one format of all operands, of several, or of
/// operands that have a part beside their tensors or are rounded stochastically.
enum class KernelKind : uint8_t { Uniform, Mixed, Compact };

/// What an entry has beside the tensors of its operands. Sides are dense, in the parameter's memory
/// order, and so are operands that have one. Such entries are computed in float.
struct CompactEntry {
  void* sides[kMaxOperands] = {};  // of operands in compact formats: remainders, scales of blocks
  uint8_t stochastic = 0;          // a bit for each operand that is rounded so, where it may be
  uint64_t key = 0;                // of its random bits, but for step and operand
  int64_t first_index = 0;         // of its first element, in the tensor that it is a part of
  OneElementState counter{};       // of steps where the rule has none; no data where it has

  bool is_stochastic(int operand) const { return (stochastic >> operand) & 1u; }
};

/// A tensor with all that belongs to it. Complex tensors are counted as their real views.
struct TensorEntry {
  void* operands[kMaxOperands];  // nullptr: there is none
  Format formats[kMaxOperands];
  int64_t numel;
  double step;           // after the increment of this step; not read where device_step is set
  float* device_step;    // the counter where it lives on the device, else nullptr
  int32_t row;           // into TensorTable::rows
  int32_t strided = -1;  // into TensorTable::strided, or -1
  int32_t compact = -1;  // into TensorTable::compact, or -1
  Device device;
  uint8_t mask;

  bool is_averaged() const { return operands[kAverage] != nullptr; }

  /// Whether it is computed in double, else in float.
  bool is_double() const { return formats[kParam] == Format::Float64; }

  bool is_compact() const { return compact >= 0; }

  /// Whether all operands are of one format.
  bool is_uniform() const {
    for (int i = kGrad; i < kMaxOperands; ++i)
      if (operands[i] != nullptr && formats[i] != formats[kParam]) return false;
    return true;
  }

  KernelKind kernel_kind() const {
    if (is_compact()) return KernelKind::Compact;
    return is_uniform() ? KernelKind::Uniform : KernelKind::Mixed;
  }
};

struct TensorTable {
  int rule = 0;
  std::vector<HyperparameterRow> rows;
  std::vector<StridedLayout> strided;
  std::vector<CompactEntry> compact;
  std::vector<TensorEntry> entries;
  int num_one_element = 0;  // states of one element of each entry, the step among them
  std::vector<OneElementState> one_element_states;  // entry by entry, in the rule's order
  std::vector<DeviceInputs> inputs;  // by index of CUDA device, for those that entries are on
  bool zero_grads = false;           // the pass that reads gradients writes zero to them
  double ema_weight = 0.0;           // of the new parameter in its average
  double grad_scale = 1.0;           // AMP's, where the host knows it
  double clip_coefficient = 1.0;     // likewise

  DeviceInputs inputs_of(Device device) const {
    const auto index = static_cast<size_t>(device.index);
    return index < inputs.size() ? inputs[index] : DeviceInputs();
  }

  /// What the gradients of a group are multiplied by, as far as the host knows: the kernels on
  /// devices go on from there.
  double grad_multiplier(const HyperparameterRow& row) const {
    return row.sign * (1.0 / grad_scale) * clip_coefficient;
  }

  /// The first of an entry's states of one element.
  OneElementState* one_element_states_of(const TensorEntry& entry) {
    return one_element_states.data() + (&entry - entries.data()) * num_one_element;
  }
  const OneElementState* one_element_states_of(const TensorEntry& entry) const {
    return const_cast<TensorTable*>(this)->one_element_states_of(entry);
  }
};

/// The random bits of an operand in the step that is being done.
inline RandomBits random_bits_of(const CompactEntry& compact, const TensorEntry& entry,
                                 int operand) {
  const double step = compact.counter.data != nullptr ? compact.counter.after : entry.step;
  return RandomBits(random_key(compact.key, step, operand));
}

/// Whether the kernel advances a counter of steps of this entry, which then is on the device.
inline bool advances_on_device(const TensorTable& table, const TensorEntry& entry) {
  return entry.device_step != nullptr ||
         (entry.is_compact() && table.compact[entry.compact].counter.is_on_device);
}

inline bool is_strided(const TensorTable& table, const TensorEntry& entry, int operand) {
  return entry.strided >= 0 && !table.strided[entry.strided].strides[operand].empty();
}

/// Tensors that one launch serves.
struct Bucket {
  const TensorTable* table;
  const TensorEntry* const* entries;
  const int64_t* ends;  // prefix sums: entry i covers elements ends[i - 1] to ends[i]
  int64_t num_entries;

  const TensorEntry& first() const { return *entries[0]; }
  int64_t numel() const { return ends[num_entries - 1]; }
  /// The entry that covers this element of the bucket's one index space.
  int64_t find(int64_t element) const {
    return std::upper_bound(ends, ends + num_entries, element) - ends;
  }
};

}  // namespace fused_optim
