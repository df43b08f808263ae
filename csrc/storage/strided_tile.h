// Operands with strides of their own, walked in the parameter's memory order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace fused_optim {

/// The parameter's memory order as a multi-index over `sizes`, outermost first, and an operand's
/// strides in it.
struct StridedView {
  const int64_t* sizes;
  const int64_t* strides;
  size_t dims;  // at least one
};

/// Calls visit(tile index, element offset) for `count` elements from `begin`, walking the innermost
/// dimension without divisions.
template <class Visit>
void for_each_offset(const StridedView& view, int64_t begin, int64_t count, Visit visit) {
  const size_t last = view.dims - 1;
  const int64_t inner_size = view.sizes[last], inner_stride = view.strides[last];
  for (int64_t done = 0; done < count;) {
    int64_t rest = (begin + done) / inner_size;
    const int64_t inner = (begin + done) % inner_size;
    int64_t offset = inner * inner_stride;
    for (size_t dim = last; dim-- > 0; rest /= view.sizes[dim])
      offset += rest % view.sizes[dim] * view.strides[dim];
    const int64_t run = std::min(inner_size - inner, count - done);
    for (int64_t i = 0; i < run; ++i) visit(done + i, offset + i * inner_stride);
    done += run;
  }
}

}  // namespace fused_optim
