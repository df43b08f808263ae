#include "total_norm.h"

#include <c10/core/GradMode.h>
#include <c10/core/impl/COW.h>

#include <cmath>

#include "../cpu/norm.h"
#include "../cuda/engine.h"
#include "../cuda/norm.h"
#include "../device_number.h"
#include "../gather.h"
#include "../layout.h"
#include "../lookup.h"
#include "../overlap.h"
#include "../tensor_checks.h"
#include "../torch_calls.h"

namespace fused_optim {
namespace {

at::TensorOptions doubles_on(Device device) {
  return at::TensorOptions(at::kDouble).device(torch_device(device));
}

void add(Gradients& gradients, StorageCheck& storages, PyObject* object) {
  if (!is_plain_type(object)) throw NotFused("a gradient is of another type than Tensor");
  const c10::TensorImpl& tensor = *unpack(object).unsafeGetTensorImpl();
  if (!is_plain(tensor)) throw NotFused("a gradient is no plain strided tensor");
  if (tensor.is_cuda() && !cuda::is_built()) throw NotFused("built without CUDA");
  if (!tensor.is_non_overlapping_and_dense()) throw NotFused("a gradient is not dense in memory");
  if (tensor.requires_grad() && c10::GradMode::is_enabled())
    throw NotFused("a gradient takes part in autograd");
  const DType dtype = dtype_of(tensor);
  if (tensor.numel() == 0) return;
  if (!lies_within_storage(tensor)) throw NotFused("a gradient reaches beyond its storage");
  if (c10::impl::cow::is_cow_data_ptr(tensor.unsafe_storage().data_ptr()))
    throw NotFused("a gradient shares its memory until it is written");
  storages.add(*tensor.unsafe_storage().unsafeGetStorageImpl());
  gradients.add(first_element(tensor), real_numel(tensor), dtype, device_of(tensor));
}

bool do_overlap(const Gradients& gradients) {
  std::vector<Interval> intervals;
  for (const Gradient& gradient : gradients.entries)
    intervals.emplace_back(gradient.data, gradient.numel * item_size(gradient.dtype), true);
  return do_overlap(std::move(intervals));
}

/// The devices that gradients are on, the first one's first.
std::vector<Device> devices_of(const Gradients& gradients) {
  std::vector<Device> devices;
  for (const Gradient& gradient : gradients.entries)
    if (std::find(devices.begin(), devices.end(), gradient.device) == devices.end())
      devices.push_back(gradient.device);
  return devices;
}

/// The sums of all chunks, zero for those on other devices.
at::Tensor sums_on(Device device, const Gradients& gradients, NormType type, bool is_only_one) {
  const int64_t chunks = gradients.num_chunks;
  at::Tensor sums =
      is_only_one ? empty({chunks}, doubles_on(device)) : zeros({chunks}, doubles_on(device));
  if (device.kind == DeviceKind::CPU)
    cpu::sum_chunks(gradients, type, sums.data_ptr<double>());
  else
    cuda::sum_chunks(gradients, device, type, sums.data_ptr<double>());
  return sums;
}

}  // namespace

Gradients read_gradients(PyObject* list, bool are_written) {
  if (!PyList_Check(list)) throw NotFused("gradients are in no list");
  Gradients gradients;
  gradients.entries.reserve(PyList_GET_SIZE(list));
  StorageCheck storages(PyList_GET_SIZE(list));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i)
    add(gradients, storages, PyList_GET_ITEM(list, i));
  if (are_written && storages.may_overlap() && do_overlap(gradients))
    throw NotFused("gradients overlap in memory");
  return gradients;
}

NormType read_norm_type(double norm_type, PyObject* gradients) {
  if (norm_type == 2.0) return NormType::L2;
  if (norm_type != 1.0 && norm_type != INFINITY) throw NotFused("no kernel for this norm");
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(gradients); ++i)
    if (is_complex(*unpack(PyList_GET_ITEM(gradients, i)).unsafeGetTensorImpl()))
      throw NotFused("no kernel for this norm of complex gradients");
  return norm_type == 1.0 ? NormType::L1 : NormType::Inf;
}

Device first_device(const Gradients& gradients) {
  return gradients.entries.empty() ? Device{DeviceKind::CPU, 0} : gradients.entries[0].device;
}

Decision* read_decision(const at::Tensor& decision) {
  return reinterpret_cast<Decision*>(decision.data_ptr<double>());
}

at::Tensor total_norm(const Gradients& gradients, NormType type, Conclusion conclusion) {
  const std::vector<Device> devices = devices_of(gradients);
  const Device first = first_device(gradients);
  at::Tensor decision = empty({sizeof(Decision) / sizeof(double)}, doubles_on(first));
  conclusion.decision = read_decision(decision);
  at::Tensor sums = sums_on(first, gradients, type, devices.size() <= 1);
  // Each chunk is on one device: x + 0 is x, whichever of the two adds.
  for (size_t i = 1; i < devices.size(); ++i)
    sums.add_(to_device(sums_on(devices[i], gradients, type, false), first, at::kDouble));
  const auto* data = sums.const_data_ptr<double>();
  if (first.kind == DeviceKind::CPU)
    conclusion.draw(cpu::finish_norm(data, gradients.num_chunks, type));
  else
    cuda::finish_norm(data, gradients.num_chunks, type, first, conclusion);
  return decision;
}

bool clip(const Gradients& gradients, const at::Tensor& norm, double max_norm) {
  bool may_have_written = false;
  for (const Device device : devices_of(gradients)) {
    const at::Tensor here = to_device(norm, device, at::kDouble);
    if (device.kind == DeviceKind::CUDA) {
      cuda::scale(gradients, device, here.const_data_ptr<double>(), max_norm);
      may_have_written = true;
      continue;
    }
    const double coefficient = clip_coefficient(*here.const_data_ptr<double>(), max_norm);
    if (coefficient == 1.0) continue;
    cpu::scale(gradients, coefficient);
    may_have_written = true;
  }
  return may_have_written;
}

}  // namespace fused_optim
