// The CUDA engine of a build without CUDA: CUDA parameters are turned away before it is reached.
#include "cuda/engine.h"

#include <stdexcept>

namespace fused_optim::cuda {
namespace {

[[noreturn]] void fail() {
  throw std::logic_error("fused_optim: built without CUDA");
}

}  // namespace

bool is_built() {
  return false;
}
std::string built_archs() {
  return "";
}
bool is_capturing(Device) {
  fail();
}
void prepare(int, const TensorEntry&) {
  fail();
}
void apply(const Bucket&) {
  fail();
}

}  // namespace fused_optim::cuda
