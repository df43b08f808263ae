#include "gather/amp.h"

#include "gather/group.h"
#include "gather/number.h"
#include "gather/python_tensor.h"
#include "tensors/devices.h"

namespace fused_optim {
namespace {

/// The number, or where it is on a device, nothing but the tensor.
double read(PyObject* value, double if_none, const char* name, std::optional<at::Tensor>& tensor) {
  if (value == Py_None) return if_none;
  if (!is_device_number(value)) return read_number(value, name);
  tensor = unpack(value);
  return if_none;
}

}  // namespace

Amp::Amp(PyObject* grad_scale, PyObject* found_inf) {
  set_found_inf(read(found_inf, 0.0, "found_inf", found_inf_));
  scale_ = read(grad_scale, 1.0, "grad_scale", grad_scale_);
}

/// GradScaler sums it over devices, so that any value but zero means an overflow.
void Amp::set_found_inf(double found_inf) {
  has_overflowed_ = found_inf != 0.0;
}

void Amp::read_on_host() {
  if (found_inf_) set_found_inf(found_inf_->item().toDouble());
  if (grad_scale_) scale_ = grad_scale_->item().toDouble();
  found_inf_.reset();
  grad_scale_.reset();
}

void Amp::apply(TensorTable& table, std::vector<at::Tensor>& owned) const {
  table.grad_scale = scale_;
  if (!found_inf_ && !grad_scale_) return;
  for (const TensorEntry& entry : table.entries) {
    const auto address = [&](const std::optional<at::Tensor>& tensor) -> const float* {
      if (!tensor) return nullptr;
      owned.push_back(to_device(*tensor, entry.device, at::kFloat));
      return owned.back().const_data_ptr<float>();
    };
    const auto index = static_cast<size_t>(entry.device.index);
    if (index >= table.inputs.size()) table.inputs.resize(index + 1);
    DeviceInputs& inputs = table.inputs[index];
    if (inputs.found_inf != nullptr || inputs.grad_scale != nullptr) continue;
    inputs.grad_scale = address(grad_scale_);
    inputs.found_inf = address(found_inf_);
  }
}

}  // namespace fused_optim
