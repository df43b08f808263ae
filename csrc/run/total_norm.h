// The norm of all gradients, wherever they are, and what is done with it.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "reduce/clip_and_skip.h"
#include "reduce/gradients.h"

namespace fused_optim {

/// The first gradient's device, where there is none the CPU.
Device first_device(const Gradients& gradients);

/// Takes the norm and decides by it, on the first gradient's device. Returns the Decision, as a
/// tensor of three float64 there, the first of them the norm. The host waits only where gradients
/// are on a CPU and on a GPU.
at::Tensor total_norm(const Gradients& gradients, NormType type, ClipAndSkip rule = {});

/// The sums of terms that give the norms of these, one float64 for each, on the first one's device
/// that has any.
at::Tensor sums_of_each(const std::vector<const Gradients*>& parts, NormType type);

/// Decides by the norm that sums of terms give, where they are.
at::Tensor decide_by_sums(const at::Tensor& sums, NormType type, ClipAndSkip rule);

/// Where it lies in the tensor.
Decision* read_decision(const at::Tensor& decision);

/// Multiplies the gradients by min(1, max_norm / (norm + 1e-6)). Returns whether it may have: the
/// host knows for a norm on the CPU.
bool clip(const Gradients& gradients, const at::Tensor& norm, double max_norm);

}  // namespace fused_optim
