#include "cpu/norm.h"

#include <algorithm>

#include "cpu/norm_kernels.h"
#include "cpu/parallel.h"

namespace fused_optim::cpu {
namespace {

/// The CPU's gradients as one index space of elements.
struct Span {
  std::vector<const Gradient*> entries;
  std::vector<int64_t> ends;
  NormKernels kernels[kNumFormats];

  explicit Span(const Gradients& gradients) {
    int64_t total = 0;
    for (const Gradient& gradient : gradients.entries) {
      if (gradient.device.kind != DeviceKind::CPU) continue;
      entries.push_back(&gradient);
      ends.push_back(total += gradient.numel);
    }
    for (int dtype = 0; dtype < kNumFormats; ++dtype)
      kernels[dtype] = find_norm_kernels(current_isa(), static_cast<Format>(dtype));
  }

  int64_t numel() const { return ends.empty() ? 0 : ends.back(); }

  /// Calls visit(gradient, first, last) for each gradient's elements within begin to end.
  template <class Visit>
  void for_each(int64_t begin, int64_t end, Visit visit) const {
    size_t i = std::upper_bound(ends.begin(), ends.end(), begin) - ends.begin();
    for (; begin < end; begin = ends[i++]) {
      const int64_t start = ends[i] - entries[i]->numel;
      visit(*entries[i], begin - start, std::min(ends[i], end) - start);
    }
  }
};

struct SumLaunch {
  const Span* span;
  NormType type;
  double* sums;
};

/// The chunks that begin in this range.
void sum_range(const void* context, int64_t begin, int64_t end) {
  const auto& launch = *static_cast<const SumLaunch*>(context);
  launch.span->for_each(begin, end, [&](const Gradient& gradient, int64_t first, int64_t last) {
    const NormKernels& kernels = launch.span->kernels[static_cast<int>(gradient.dtype)];
    const auto sum_chunk = kernels.sum_chunk[static_cast<int>(launch.type)];
    for (int64_t chunk = (first + kNormChunk - 1) / kNormChunk; chunk * kNormChunk < last;
         ++chunk) {
      const int64_t from = chunk * kNormChunk;
      const void* data = static_cast<const char*>(gradient.data) + from * item_size(gradient.dtype);
      launch.sums[gradient.first_chunk + chunk] =
          sum_chunk(data, std::min(kNormChunk, gradient.numel - from));
    }
  });
}

struct ScaleLaunch {
  const Span* span;
  double coefficient;
};

void scale_range(const void* context, int64_t begin, int64_t end) {
  const auto& launch = *static_cast<const ScaleLaunch*>(context);
  launch.span->for_each(begin, end, [&](const Gradient& gradient, int64_t first, int64_t last) {
    void* data = static_cast<char*>(gradient.data) + first * item_size(gradient.dtype);
    const NormKernels& kernels = launch.span->kernels[static_cast<int>(gradient.dtype)];
    kernels.scale(data, last - first, launch.coefficient);
  });
}

}  // namespace

void sum_chunks(const Gradients& gradients, NormType type, double* sums) {
  const Span span(gradients);
  const SumLaunch launch{&span, type, sums};
  parallel_ranges(span.numel(), sum_range, &launch);
}

double finish_norm(const double* sums, int64_t count, NormType type) {
  if (count == 0) return 0.0;
  const NormKernels kernels = find_norm_kernels(current_isa(), Format::Float64);
  return norm_of_sum(type, kernels.sum_chunk[static_cast<int>(type_of_sums(type))](sums, count));
}

void scale(const Gradients& gradients, double coefficient) {
  const Span span(gradients);
  const ScaleLaunch launch{&span, coefficient};
  parallel_ranges(span.numel(), scale_range, &launch);
}

}  // namespace fused_optim::cpu
