#include "step_counter.h"

#include <ATen/ops/full.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cmath>

#include "device_number.h"
#include "gather.h"
#include "lookup.h"

namespace fused_optim {

const at::Tensor& state_tensor(const Where& where, PyObject* value, const char* name) {
  if (!THPVariable_Check(value))
    where.fail(name, std::string("is no tensor but ") + Py_TYPE(value)->tp_name);
  if (!is_plain_type(value)) throw NotFused(std::string(name) + " is of a tensor subclass");
  return THPVariable_Unpack(value);
}

const at::Tensor& existing_step(const Where& where, PyObject* value) {
  if (value == nullptr) where.fail("step", "is missing from the state");
  if (!THPVariable_Check(value)) throw NotFused("step is no tensor");
  const at::Tensor& step = state_tensor(where, value, "step");
  if (step.is_meta()) where.fail("step", "is on the meta device: it has no value");
  const c10::TensorImpl& tensor = *step.unsafeGetTensorImpl();
  if (tensor.numel() != 1)
    where.fail("step", "has shape " + shape_of(tensor) + ", not one element");
  const auto type = tensor.dtype().toScalarType();
  if (type != at::kFloat && type != at::kDouble) throw NotFused("step is of no float dtype");
  if (!is_plain(tensor)) throw NotFused("step is no plain strided tensor");
  return step;
}

bool fits_device(const at::Tensor& step, Device device) {
  if (!(device_of(*step.unsafeGetTensorImpl()) == device)) return false;
  return device.kind == DeviceKind::CPU || step.scalar_type() == at::kFloat;
}

at::Tensor new_step(Device device) {
  if (device.kind == DeviceKind::CUDA)
    return at::zeros({}, at::TensorOptions(at::kFloat).device(at::kCUDA, device.index));
  const bool is_double = c10::get_default_dtype_as_scalartype() == c10::ScalarType::Double;
  return at::zeros({}, is_double ? at::kDouble : at::kFloat);
}

at::Tensor moved_step(const Where& where, const at::Tensor& step, Device device) {
  if (!step.is_cpu() || device.kind == DeviceKind::CPU)
    return to_device(step, device, device.kind == DeviceKind::CPU ? step.scalar_type() : at::kFloat)
        .detach();
  const c10::TensorImpl& tensor = *step.unsafeGetTensorImpl();
  const double count = read_count(step.const_data_ptr(), dtype_of(tensor));
  check_count(where, count);
  // The number travels in a kernel's arguments: a copy from memory would make the host wait.
  return at::full(step.sizes(), count,
                  at::TensorOptions(at::kFloat).device(at::kCUDA, device.index));
}

double read_count(const void* data, DType dtype) {
  return dtype == DType::Float32 ? *static_cast<const float*>(data)
                                 : *static_cast<const double*>(data);
}

void check_count(const Where& where, double count) {
  if (!(count >= 0) || std::isinf(count))
    where.fail("step", "is " + std::to_string(count) + ", not a count of steps");
  // Powers are computed for whole steps that a double counts exactly; torch's pow takes others.
  if (count > 9e15 || count != std::floor(count)) throw NotFused("step is no whole number");
}

}  // namespace fused_optim
