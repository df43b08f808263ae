// GradScaler's scale and overflow flag: numbers where the host knows them, else device tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include <optional>
#include <vector>

#include "table.h"

namespace fused_optim {

/// AMP found an overflow, and the host knows: nothing of this step is done.
struct Overflow {};

class Amp {
 public:
  /// Each None, a number or a one-element tensor. Throws Overflow where found_inf is on the host
  /// and not zero: GradScaler sums it over devices, so any other value means an overflow.
  Amp(PyObject* grad_scale, PyObject* found_inf);

  bool found_inf_is_on_device() const { return found_inf_.has_value(); }
  bool is_on_device() const { return found_inf_.has_value() || grad_scale_.has_value(); }

  /// Reads on the host what is on the device, which waits for it. Throws Overflow.
  void read_on_host();

  /// 1 over the scale, as far as the host knows it.
  double grad_multiplier() const { return 1.0 / scale_; }

  /// Where the kernels of this CUDA device read the rest. Copies, if any, are added to `owned`.
  AmpPointers pointers(Device device, std::vector<at::Tensor>& owned) const;

 private:
  double scale_ = 1.0;
  std::optional<at::Tensor> grad_scale_, found_inf_;  // on a device
};

}  // namespace fused_optim
