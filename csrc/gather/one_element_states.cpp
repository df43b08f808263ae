#include "gather/one_element_states.h"

#include <cmath>

#include "base/errors.h"
#include "gather/lookup.h"
#include "gather/python_tensor.h"
#include "rules/one_element_states.h"
#include "tensors/devices.h"
#include "tensors/new_tensors.h"

namespace fused_optim {
namespace {

/// On a device it is written by a kernel: the number travels in its arguments.
at::Tensor filled(at::IntArrayRef shape, double value, Device device, at::ScalarType dtype) {
  return full(shape, value, at::TensorOptions(dtype).device(torch_device(device)));
}

at::Tensor moved(const at::Tensor& scalar, Device device, at::ScalarType dtype) {
  if (!scalar.is_cpu() || device.kind == DeviceKind::CPU)
    return to_device(scalar, device, dtype).detach();
  // A copy from the host's memory would make the host wait.
  const Format stored = format_of(*scalar.unsafeGetTensorImpl());
  return filled(scalar.sizes(), load_scalar(scalar.const_data_ptr(), stored), device, dtype);
}

at::ScalarType default_dtype() {
  const bool is_double = c10::get_default_dtype_as_scalartype() == c10::ScalarType::Double;
  return is_double ? at::kDouble : at::kFloat;
}

at::ScalarType step_dtype(Device device, at::ScalarType on_cpu) {
  return device.kind == DeviceKind::CPU ? on_cpu : at::kFloat;
}

/// The one-element tensor, checked but for its device, dtype and value.
const at::Tensor& existing_scalar(const Where& where, PyObject* value, const char* name) {
  if (value == nullptr) where.fail(name, "is missing from the state");
  const at::Tensor& scalar = state_tensor(where, value, name);
  if (scalar.is_meta()) where.fail(name, "is on the meta device: it has no value");
  const c10::TensorImpl& tensor = *scalar.unsafeGetTensorImpl();
  if (tensor.numel() != 1) where.fail(name, "has shape " + shape_of(tensor) + ", not one element");
  if (!is_plain(tensor)) throw NotFused(std::string(name) + " is no plain strided tensor");
  return scalar;
}

}  // namespace

const at::Tensor& state_tensor(const Where& where, PyObject* value, const char* name) {
  if (!is_tensor(value))
    where.fail(name, std::string("is no tensor but ") + Py_TYPE(value)->tp_name);
  if (!is_plain_type(value)) throw NotFused(std::string(name) + " is of a tensor subclass");
  return unpack(value);
}

const at::Tensor& existing_scalar_state(const Where& where, PyObject* value, const char* name) {
  const at::Tensor& scalar = existing_scalar(where, value, name);
  if (!scalar.is_floating_point())
    where.fail(name, std::string("has dtype ") + c10::toString(scalar.scalar_type()) +
                         ", which holds no fractions");
  format_of(*scalar.unsafeGetTensorImpl());
  return scalar;
}

const at::Tensor& existing_step(const Where& where, PyObject* value) {
  if (value != nullptr && !is_tensor(value)) throw NotFused("step is no tensor");
  const at::Tensor& step = existing_scalar(where, value, "step");
  if (step.scalar_type() != at::kFloat && step.scalar_type() != at::kDouble)
    throw NotFused("step is of another dtype than float32 and float64");
  return step;
}

bool step_fits(const at::Tensor& step, Device device) {
  return scalar_fits(step, device) && step_dtype(device, step.scalar_type()) == step.scalar_type();
}

at::Tensor new_step(Device device) {
  return filled({}, 0.0, device, step_dtype(device, default_dtype()));
}

at::Tensor moved_step(const Where& where, const at::Tensor& step, Device device) {
  if (step.is_cpu())
    check_count(where, load_scalar(step.const_data_ptr(), format_of(*step.unsafeGetTensorImpl())));
  return moved(step, device, step_dtype(device, step.scalar_type()));
}

at::Tensor new_scalar(Device device, double value) {
  return filled({}, value, device, default_dtype());
}

bool scalar_fits(const at::Tensor& scalar, Device device) {
  return device_of(*scalar.unsafeGetTensorImpl()) == device;
}

at::Tensor moved_scalar(const at::Tensor& scalar, Device device) {
  return moved(scalar, device, scalar.scalar_type());
}

void check_count(const Where& where, double count) {
  if (!(count >= 0) || std::isinf(count))
    where.fail("step", "is " + std::to_string(count) + ", not a count of steps");
  // Powers are computed for whole steps that a double counts exactly; torch's pow takes others.
  if (count > 9e15 || count != std::floor(count)) throw NotFused("step is no whole number");
}

}  // namespace fused_optim
