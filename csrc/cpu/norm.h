// Norms and scaling of gradients on the CPU.
#pragma once

#include "reduce/gradients.h"

namespace fused_optim::cpu {

/// Writes the sum of terms of each chunk of the CPU's gradients to its place in `sums`.
void sum_chunks(const Gradients& gradients, NormType type, double* sums);

/// The norm from the sums of all chunks.
double finish_norm(const double* sums, int64_t count, NormType type);

/// Multiplies the CPU's gradients.
void scale(const Gradients& gradients, double coefficient);

}  // namespace fused_optim::cpu
