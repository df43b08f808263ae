#include "amp.h"

#include <torch/csrc/autograd/python_variable.h>

#include "device_number.h"
#include "hyperparameters.h"

namespace fused_optim {
namespace {

/// The number, or where it is on a device, nothing but the tensor.
double read(PyObject* value, double if_none, const char* name, std::optional<at::Tensor>& tensor) {
  if (value == Py_None) return if_none;
  if (!is_device_number(value)) return read_number(value, name);
  tensor = THPVariable_Unpack(value);
  return if_none;
}

void throw_if_overflow(double found_inf) {
  if (found_inf != 0.0) throw Overflow();
}

}  // namespace

Amp::Amp(PyObject* grad_scale, PyObject* found_inf) {
  throw_if_overflow(read(found_inf, 0.0, "found_inf", found_inf_));
  scale_ = read(grad_scale, 1.0, "grad_scale", grad_scale_);
}

void Amp::read_on_host() {
  if (found_inf_) throw_if_overflow(found_inf_->item().toDouble());
  if (grad_scale_) scale_ = grad_scale_->item().toDouble();
  found_inf_.reset();
  grad_scale_.reset();
}

AmpPointers Amp::pointers(Device device, std::vector<at::Tensor>& owned) const {
  const auto address = [&](const std::optional<at::Tensor>& tensor) -> const float* {
    if (!tensor) return nullptr;
    owned.push_back(to_device(*tensor, device, at::kFloat));
    return owned.back().const_data_ptr<float>();
  };
  return {address(grad_scale_), address(found_inf_)};
}

}  // namespace fused_optim
