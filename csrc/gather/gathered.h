// What the gather hands on: a step that is checked, nothing of it done yet.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include <cstdint>
#include <vector>

#include "gather/group.h"
#include "gather/new_state.h"
#include "reduce/gradients.h"
#include "step/table.h"
#include "tensors/compact.h"

namespace fused_optim {

/// A parameter whose average no kernel updates.
struct Averaged {
  at::Tensor average, param;
  at::Tensor remainder;  // of the parameter's master, undefined where it has none

  /// What the average is one of.
  at::Tensor values() const { return remainder.defined() ? joined(param, remainder) : param; }
};

/// A DTensor, borrowed, and what was its local tensor.
struct Wrapper {
  PyObject* object;
  const c10::TensorImpl* local;
  bool is_grad = false;
};

/// Why the host has to know whether the step is skipped, where a kernel could find out by itself.
enum class HostDecides : uint8_t {
  No,
  ForCpuParams,
  ForFirstStep,
  ForFirstAverages,
  ForAverageAlone
};

/// As errors say it: "the host has to know whether ..., since".
const char* text_of(HostDecides reason);

struct Gathered {
  TensorTable table;
  std::vector<ParamGroup> groups;  // own the lists, and so the parameters
  std::vector<NewState> new_states;
  std::vector<c10::TensorImpl*> written;  // borrowed: parameters and states, for their versions
  std::vector<c10::TensorImpl*> read;     // borrowed: gradients
  std::vector<c10::TensorImpl*> beside_table;      // borrowed: of parameters without a gradient
  std::vector<Wrapper> wrappers;                   // DTensors around what is written
  std::vector<at::Tensor> owned;                   // copies that kernels read
  Gradients gradients;                             // for the norm, where the step needs one
  std::vector<Gradients> gradients_of_placements;  // for one over several ranks: of DTensors
  std::vector<at::Tensor> copied_grads;            // not dense, so the step reads and zeroes a copy
  std::vector<Averaged> first_averages;            // the optimizer's first: become the parameters
  std::vector<Averaged> averages_alone;            // of parameters without a gradient
  HostDecides host_decides = HostDecides::No;
  bool has_compact = false;  // a group or a state has to do with compact formats

  /// The first reason stays.
  void let_host_decide(HostDecides reason) {
    if (host_decides == HostDecides::No) host_decides = reason;
  }
};

}  // namespace fused_optim
