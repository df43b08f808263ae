#include "run/total_norm.h"

#include <algorithm>
#include <vector>

#include "cpu/norm.h"
#include "cuda/norm.h"
#include "tensors/checks.h"
#include "tensors/devices.h"
#include "tensors/new_tensors.h"

namespace fused_optim {
namespace {

at::TensorOptions doubles_on(Device device) {
  return at::TensorOptions(at::kDouble).device(torch_device(device));
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

/// Those of all devices, on the first one.
at::Tensor sums_of_chunks(const Gradients& gradients, NormType type) {
  const std::vector<Device> devices = devices_of(gradients);
  const Device first = first_device(gradients);
  at::Tensor sums = sums_on(first, gradients, type, devices.size() <= 1);
  // Each chunk is on one device: x + 0 is x, whichever of the two adds.
  for (size_t i = 1; i < devices.size(); ++i)
    sums.add_(to_device(sums_on(devices[i], gradients, type, false), first, at::kDouble));
  return sums;
}

}  // namespace

Device first_device(const Gradients& gradients) {
  return gradients.entries.empty() ? Device{DeviceKind::CPU, 0} : gradients.entries[0].device;
}

Decision* read_decision(const at::Tensor& decision) {
  return reinterpret_cast<Decision*>(decision.data_ptr<double>());
}

at::Tensor decide_by_sums(const at::Tensor& sums, NormType type, ClipAndSkip rule) {
  at::Tensor decision = empty({sizeof(Decision) / sizeof(double)}, sums.options());
  rule.decision = read_decision(decision);
  const auto* data = sums.const_data_ptr<double>();
  if (sums.is_cpu())
    rule.decide(cpu::finish_norm(data, sums.numel(), type));
  else
    cuda::finish_norm(data, sums.numel(), type, device_of(*sums.unsafeGetTensorImpl()), rule);
  return decision;
}

at::Tensor total_norm(const Gradients& gradients, NormType type, ClipAndSkip rule) {
  return decide_by_sums(sums_of_chunks(gradients, type), type, rule);
}

at::Tensor sums_of_each(const std::vector<const Gradients*>& parts, NormType type) {
  Device device{DeviceKind::CPU, 0};
  for (auto part = parts.rbegin(); part != parts.rend(); ++part)
    if (!(*part)->entries.empty()) device = first_device(**part);
  at::Tensor sums = zeros({static_cast<int64_t>(parts.size())}, doubles_on(device));
  for (size_t i = 0; i < parts.size(); ++i) {
    if (parts[i]->entries.empty()) continue;
    const at::Tensor of_chunks = sums_of_chunks(*parts[i], type);
    // The norm of sums is their sum, or the largest of them.
    const at::Tensor sum = decide_by_sums(of_chunks, type_of_sums(type), {}).select(0, 0);
    sums.select(0, static_cast<int64_t>(i)).copy_(sum);
  }
  return sums;
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
