// Norms in a build without CUDA: gradients on its devices are turned away before they get here.
#include "cuda/norm.h"

#include <stdexcept>

namespace fused_optim::cuda {
namespace {

[[noreturn]] void fail() {
  throw std::logic_error("fused_optim: built without CUDA");
}

}  // namespace

void sum_chunks(const Gradients&, Device, NormType, double*) {
  fail();
}
void finish_norm(const double*, int64_t, NormType, Device, const ClipAndSkip&) {
  fail();
}
void scale(const Gradients&, Device, const double*, double) {
  fail();
}

}  // namespace fused_optim::cuda
