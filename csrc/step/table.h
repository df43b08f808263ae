// The checked description of one step: what gather produces and the engines consume.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/device.h"
#include "reduce/clip_and_skip.h"
#include "rules/rule.h"
#include "storage/dtype.h"
#include "storage/strided_tile.h"

namespace fused_optim {

/// One group's hyperparameters on one device, in the order of the rule's list.
struct HyperparameterRow {
  double values[kMaxHyperparameters];
  const void* addresses[kMaxHyperparameters];  // of values on the device, else nullptr
  uint32_t are_doubles;                        // a bit for each address: double, else float
  double grad_multiplier;                      // all of it that the host knows: maximize's sign,
                                               // 1 over AMP's scale, the clip coefficient
};

/// What the host doesn't know because it is on the device, where kernels read it; else nullptr.
struct DeviceInputs {
  const float* grad_scale = nullptr;  // AMP's
  const float* found_inf = nullptr;   // likewise
  const Decision* decision = nullptr;
};

/// Operands of a tensor: 0 the parameter, 1 the gradient, then the states, then the average.
constexpr int kParam = 0;
constexpr int kGrad = 1;
constexpr int kFirstState = 2;
constexpr int kAverage = kFirstState + kMaxStates;
constexpr int kMaxOperands = kAverage + 1;

/// How operands whose strides differ from the parameter's are reached: the parameter's memory
/// order as a multi-index over `sizes`, outermost first, and each such operand's strides in it.
struct StridedLayout {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides[kMaxOperands];  // empty: the operand lies as the parameter does

  StridedView view(int operand) const {
    return {sizes.data(), strides[operand].data(), sizes.size()};
  }
};

/// A tensor's one-element states beside `step`. Where the kernel advances them on the device, their
/// values are not read.
struct ScalarStates {
  void* data[kMaxScalarStates];
  DType dtype;
  bool on_device;
  ScalarValues values;
};

/// A tensor with all that belongs to it. Complex tensors are counted as their real views.
struct TensorEntry {
  void* operands[kMaxOperands];
  int64_t numel;
  double step;         // after the increment of this step; not read where device_step is set
  float* device_step;  // the counter where it lives on the device, else nullptr
  int32_t row;         // into TensorTable::rows
  int32_t strided;     // into TensorTable::strided, or -1
  Device device;
  DType dtype;
  uint8_t mask;

  bool is_averaged() const { return operands[kAverage] != nullptr; }
};

struct TensorTable {
  int rule = 0;
  std::vector<HyperparameterRow> rows;
  std::vector<StridedLayout> strided;
  std::vector<TensorEntry> entries;
  std::vector<ScalarStates> scalar_states;  // one for each entry, or none: the rule has none
  std::vector<DeviceInputs> inputs;  // by index of CUDA device, for those that entries are on
  bool zero_grads = false;           // the pass that reads gradients writes zero to them
  double ema_weight = 0.0;           // of the new parameter in its average

  DeviceInputs inputs_of(Device device) const {
    const auto index = static_cast<size_t>(device.index);
    return index < inputs.size() ? inputs[index] : DeviceInputs();
  }

  /// nullptr where the rule has none.
  const ScalarStates* scalar_states_of(const TensorEntry& entry) const {
    return scalar_states.empty() ? nullptr : &scalar_states[&entry - entries.data()];
  }

  /// Whether all that is the same for a tensor's elements is the same for both, on the host.
  bool have_same_scalars(const TensorEntry& a, const TensorEntry& b) const {
    if (a.row != b.row || a.step != b.step) return false;
    if (scalar_states.empty()) return true;
    const ScalarStates &of_a = *scalar_states_of(a), &of_b = *scalar_states_of(b);
    return of_a.dtype == of_b.dtype &&
           std::equal(of_a.values.before, of_a.values.before + kMaxScalarStates,
                      of_b.values.before);
  }
};

/// Tensors that one launch serves: same device, dtype, rule and states, and all averaged or none.
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
