// GradScaler's scale and overflow flag: numbers where the host knows them, else device tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include <optional>
#include <vector>

#include "step/table.h"

namespace fused_optim {

class Amp {
 public:
  /// Each None, a number or a one-element tensor.
  Amp(PyObject* grad_scale, PyObject* found_inf);

  /// Whether there was an overflow, and the host knows: the step is not done.
  bool has_overflowed() const { return has_overflowed_; }

  bool is_on_device() const { return grad_scale_ || found_inf_; }

  /// Reads on the host what is on the device, which waits for it.
  void read_on_host();

  /// The scale, as far as the host knows it.
  double scale() const { return scale_; }

  /// Writes what the host knows to the table, and where kernels read the rest to each device's
  /// inputs. Copies, if any, are added to `owned`.
  void apply(TensorTable& table, std::vector<at::Tensor>& owned) const;

 private:
  void set_found_inf(double found_inf);

  double scale_ = 1.0;
  bool has_overflowed_ = false;
  std::optional<at::Tensor> grad_scale_, found_inf_;  // on a device
};

}  // namespace fused_optim
