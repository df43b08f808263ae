// A tensor's operands: where each lies in memory, in which format, with which strides.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "rules/rule.h"
#include "storage/registry.h"
#include "storage/strided_tile.h"

namespace fused_optim {

/// Operands of a tensor: 0 the parameter, 1 the gradient, then the states, then the average.
constexpr int kParam = 0;
constexpr int kGrad = 1;
constexpr int kFirstState = 2;
constexpr int kAverage = kFirstState + kMaxStates;
constexpr int kMaxOperands = kAverage + 1;

constexpr int state_operand(int state) {
  return kFirstState + state;
}

/// Elements that lie together where a format needs them together, counted from a tensor's first. No
/// block is worked on by two threads.
constexpr int64_t kBlock = kCodesInBlock;

struct ElementRange {
  int64_t first, past;
};

/// The elements of the blocks that begin in this range, of a tensor of so many elements. Ranges may
/// begin before the tensor and end after it.
inline ElementRange blocks_within(int64_t numel, int64_t begin, int64_t end) {
  const auto round_up = [=](int64_t element) {
    return element >= numel ? numel : (element + kBlock - 1) / kBlock * kBlock;
  };
  return {std::min(numel, round_up(std::max<int64_t>(begin, 0))), std::min(numel, round_up(end))};
}

/// How operands whose strides differ from the parameter's are reached: the parameter's memory
/// order as a multi-index over `sizes`, outermost first, and each such operand's strides in it.
struct StridedLayout {
  std::vector<int64_t> sizes;
  std::vector<int64_t> strides[kMaxOperands];  // empty: the operand lies as the parameter does

  StridedView view(int operand) const {
    return {sizes.data(), strides[operand].data(), sizes.size()};
  }
};

}  // namespace fused_optim
