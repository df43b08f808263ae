// A norm as a sum whose order is fixed: the same bits for any number of threads, alignment or
// launch shape, on every device.
//
// Each tensor is cut into chunks. A chunk's elements go round-robin to 256 columns, a pack of 16
// bytes at a time; each place of a column's pack has a running sum in double. The sums of a pack,
// then the columns, are added pairwise, in halves. What the chunks give is added up in the same
// way.
#pragma once

#include <cstdint>
#include <type_traits>

#include "storage/registry.h"

namespace fused_optim {

enum class NormType : uint8_t { L1, L2, Inf };
constexpr int kNumNormTypes = 3;

/// Elements that become one number. Every tensor begins a chunk of its own.
constexpr int64_t kNormChunk = 1 << 15;
constexpr int kNormColumns = 256;

/// What one element adds to the norm.
template <NormType type, class Storage>
FUSED_OPTIM_INLINE double norm_term(Storage value) {
  const double x = to_opmath(value);
  return type == NormType::L2 ? x * x : absolute(x);
}

template <NormType type>
FUSED_OPTIM_INLINE double norm_add(double a, double b) {
  return type == NormType::Inf ? maximum(a, b) : a + b;
}

/// visit(std::integral_constant<NormType, type>()).
template <class Visit>
auto with_norm_type(NormType type, Visit visit) {
  if (type == NormType::L1) return visit(std::integral_constant<NormType, NormType::L1>());
  if (type == NormType::L2) return visit(std::integral_constant<NormType, NormType::L2>());
  return visit(std::integral_constant<NormType, NormType::Inf>());
}

/// The norm from the sum of all terms.
FUSED_OPTIM_INLINE double norm_of_sum(NormType type, double sum) {
  return type == NormType::L2 ? square_root(sum) : sum;
}

/// How sums are added up: terms that are no squares any more.
constexpr NormType type_of_sums(NormType type) {
  return type == NormType::Inf ? NormType::Inf : NormType::L1;
}

/// torch.nn.utils.clip_grad_norm_: what gradients of this norm are multiplied by.
FUSED_OPTIM_INLINE double clip_coefficient(double norm, double max_norm) {
  const double coefficient = max_norm / (norm + 1e-6);
  return coefficient > 1.0 ? 1.0 : coefficient;
}

}  // namespace fused_optim
