// Steps of an optimizer as the engine sees them, without what gathers them from Python.
#pragma once

#include <string>
#include <vector>

#include "memory.h"
#include "step/table.h"

namespace fused_optim::tsan {

struct StepCase {
  int rule;
  StateMask states;
  Format dtype;
  bool is_strided;          // every other tensor's gradient, first state and average are
  bool is_finished;         // gradients are zeroed and parameters averaged
  bool is_compact = false;  // parameters have masters of 24 bits, moments are in 8

  std::string name() const;
};

/// All rules, sets of states, dtypes and options.
std::vector<StepCase> step_cases();

/// The tensors of a case, the same whenever they are made.
class Tensors {
 public:
  explicit Tensors(const StepCase& kind);
  Tensors(const Tensors&) = delete;  // the table points into `operands_`

  /// Some steps, each with gradients of its own.
  void run_steps();
  bool has_same_bits(const Tensors& other) const;
  /// Of all tensors, one after the other; empty where the case has no such operand.
  const Bytes& operand(int operand) const { return operands_[operand]; }
  /// What lies beside them, likewise.
  const Bytes& side(int operand) const { return sides_[operand]; }

 private:
  void add_groups();
  void add_tensor(const Shape& shape, int64_t first);
  void make_compact(int64_t first, TensorEntry& entry);
  void add_layout(const Shape& shape, TensorEntry& entry);
  void add_one_element_states(int32_t row);
  void begin_step(int step);

  StepCase kind_;
  Bytes operands_[kMaxOperands], sides_[kMaxOperands];
  TensorTable table_;
  std::vector<const TensorEntry*> bucket_;
  std::vector<int64_t> ends_;
};

}  // namespace fused_optim::tsan
