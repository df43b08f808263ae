#include "norms.h"

#include <cstring>

#include "cpu/norm.h"

namespace fused_optim::tsan {

ManyGradients::ManyGradients() {
  const std::vector<Shape> shapes = ragged_shapes();
  const auto dtype_of = [](size_t index) { return static_cast<Format>(index % kNumFormats); };
  int64_t total = 0;
  // Each begins where a double may.
  const auto size_of = [&](size_t index) {
    return (shapes[index].numel() * item_size(dtype_of(index)) + 7) / 8 * 8;
  };
  for (size_t i = 0; i < shapes.size(); ++i) total += size_of(i);
  memory_.resize(total);
  char* data = memory_.data();
  for (size_t i = 0; i < shapes.size(); data += size_of(i++)) {
    fill_random(data, shapes[i].numel(), dtype_of(i), static_cast<uint32_t>(i));
    gradients_.add(data, shapes[i].numel(), dtype_of(i), {DeviceKind::CPU, 0});
  }
}

void ManyGradients::measure_and_scale() {
  for (int i = 0; i < kNumNormTypes; ++i) {
    const auto type = static_cast<NormType>(i);
    std::vector<double> sums(gradients_.num_chunks);
    cpu::sum_chunks(gradients_, type, sums.data());
    results_.insert(results_.end(), sums.begin(), sums.end());
    results_.push_back(cpu::finish_norm(sums.data(), gradients_.num_chunks, type));
  }
  cpu::scale(gradients_, 0.37);
}

bool ManyGradients::has_same_bits(const ManyGradients& other) const {
  return memory_ == other.memory_ && results_.size() == other.results_.size() &&
         memcmp(results_.data(), other.results_.data(), results_.size() * sizeof(double)) == 0;
}

}  // namespace fused_optim::tsan
