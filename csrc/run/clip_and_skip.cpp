#include "run/clip_and_skip.h"

#include "cuda/engine.h"
#include "run/total_norm.h"
#include "tensors/checks.h"
#include "tensors/devices.h"
#include "tensors/new_tensors.h"

namespace fused_optim {
namespace {

/// Makes the counter of skipped steps one on the device that counts.
void check_counter(Device device, at::Tensor& skipped_steps) {
  const at::Device target = torch_device(device);
  if (skipped_steps.defined() &&
      (skipped_steps.scalar_type() != at::kLong || skipped_steps.numel() != 1 ||
       !is_plain(*skipped_steps.unsafeGetTensorImpl()) ||
       !lies_within_storage(*skipped_steps.unsafeGetTensorImpl())))
    throw std::runtime_error("fused_optim: skipped_steps is no int64 tensor of one element");
  if (skipped_steps.defined() && skipped_steps.device() == target) return;
  if (device.kind == DeviceKind::CUDA && cuda::is_capturing(device))
    throw std::runtime_error(
        "fused_optim: skipped_steps has to be created, but a CUDA graph is being captured and each "
        "replay would create it anew: call step() once before the capture");
  const at::Tensor old = skipped_steps;
  skipped_steps = zeros({}, at::TensorOptions(at::kLong).device(target));
  if (old.defined()) skipped_steps.copy_(old);
}

ClipAndSkip clip_and_skip_on(Device device, Gathered& gathered, const Amp& amp,
                             const StepOptions& options, const Contributions* of_all_ranks,
                             at::Tensor& skipped_steps) {
  const DeviceInputs inputs = gathered.table.inputs_of(device);
  ClipAndSkip rule = clip_and_skip_from(options);
  rule.scale = amp.scale();
  rule.grad_scale = inputs.grad_scale;
  rule.found_inf = inputs.found_inf;
  rule.has_overflowed = amp.has_overflowed();
  if (of_all_ranks != nullptr) {
    rule.has_overflowed = rule.has_overflowed || of_all_ranks->has_overflowed;
    if (of_all_ranks->found_inf.defined())  // this rank's is in it
      rule.found_inf = of_all_ranks->found_inf.const_data_ptr<float>();
  }
  if (!options.skip_nonfinite) return rule;
  check_counter(device, skipped_steps);
  // On the CPU the host counts, once all is done: what another thread gives to the tensor in the
  // meantime is not this memory. A kernel gets an alias, which owns it.
  if (device.kind == DeviceKind::CPU) return rule;
  gathered.owned.push_back(skipped_steps.detach());
  rule.skipped_steps = gathered.owned.back().data_ptr<int64_t>();
  return rule;
}

/// Tells each device's kernels where the decision lies.
void pass_on(const at::Tensor& decision, Gathered& gathered) {
  TensorTable& table = gathered.table;
  for (const TensorEntry& entry : table.entries) {
    const auto index = static_cast<size_t>(entry.device.index);
    if (index >= table.inputs.size()) table.inputs.resize(index + 1);
    if (table.inputs[index].decision != nullptr) continue;
    gathered.owned.push_back(to_device(decision, entry.device, at::kDouble));
    table.inputs[index].decision = read_decision(gathered.owned.back());
  }
}

}  // namespace

ClipAndSkip clip_and_skip_from(const StepOptions& options) {
  ClipAndSkip rule;
  rule.skip_nonfinite = options.skip_nonfinite;
  if (options.max_grad_norm) rule.max_norm = *options.max_grad_norm;
  return rule;
}

at::Tensor sums_of_placements(const Gathered& gathered, NormType type) {
  std::vector<const Gradients*> parts{&gathered.gradients};
  for (const Gradients& of_placement : gathered.gradients_of_placements)
    parts.push_back(&of_placement);
  return sums_of_each(parts, type);
}

bool clip_and_skip(Gathered& gathered, const Amp& amp, const StepOptions& options,
                   const Contributions* of_all_ranks, Found& found) {
  if (!options.needs_norm()) return !amp.has_overflowed();
  const Device device = of_all_ranks != nullptr
                            ? device_of(*of_all_ranks->sums.unsafeGetTensorImpl())
                            : first_device(gathered.gradients);
  const ClipAndSkip rule =
      clip_and_skip_on(device, gathered, amp, options, of_all_ranks, found.skipped_steps);
  const NormType type = options.norm_type();
  const at::Tensor decision = of_all_ranks != nullptr
                                  ? decide_by_sums(of_all_ranks->sums, type, rule)
                                  : total_norm(gathered.gradients, type, rule);
  if (options.max_grad_norm) found.grad_norm = decision.select(0, 0);
  if (device.kind == DeviceKind::CUDA && gathered.host_decides == HostDecides::No) {
    pass_on(decision, gathered);
    return true;
  }
  const at::Tensor here = to_device(decision, {DeviceKind::CPU, 0}, at::kDouble);
  const Decision& known = *read_decision(here);
  gathered.table.clip_coefficient = known.coefficient;
  found.is_skipped = known.is_skipped != 0.0 && device.kind == DeviceKind::CPU;
  return known.is_skipped == 0.0;
}

}  // namespace fused_optim
