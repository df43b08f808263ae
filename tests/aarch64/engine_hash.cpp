// A hash of what every kernel of the CPU engine computes, to compare architectures by: a line for
// each kernel, then one of all. The steps and norms are those of the program in tests/tsan.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <string>

#include "cpu/isa.h"
#include "tsan/norms.h"
#include "tsan/steps.h"

namespace fused_optim::tsan {
namespace {

/// FNV-1a, over 16 bits at a time.
class Hash {
 public:
  void add(const void* data, int64_t count, Format dtype) {
    with_storage(dtype, [&]<class Storage>(Storage) {
      for (int64_t i = 0; i < count; ++i) add_element(static_cast<const Storage*>(data)[i]);
    });
  }
  uint64_t value() const { return value_; }

 private:
  template <class Storage>
  void add_element(Storage element) {
    // A NaN's bits, its sign too, are the processor's.
    if (std::isnan(to_opmath(element))) element = to_storage<Storage>(opmath_t<Storage>(NAN));
    uint16_t words[sizeof(Storage) / 2];
    memcpy(words, &element, sizeof(Storage));
    for (uint16_t word : words) value_ = (value_ ^ word) * 0x100000001b3u;
  }

  uint64_t value_ = 0xcbf29ce484222325u;
};

void print(Hash& all, const Hash& hash, const std::string& name) {
  const double bits[] = {static_cast<double>(hash.value() >> 32),
                         static_cast<double>(hash.value() & 0xffffffffu)};
  all.add(bits, 2, Format::Float64);
  printf("%016" PRIx64 " %s\n", hash.value(), name.c_str());
}

/// Of all kernels, in the instruction set that is in use.
void run_all() {
  Hash all;
  int kernels = 1;
  for (const StepCase& kind : step_cases()) {
    Tensors tensors(kind);
    tensors.run_steps();
    Hash hash;
    for (int operand = 0; operand < kMaxOperands; ++operand) {
      const Bytes& bytes = tensors.operand(operand);
      hash.add(bytes.data(), bytes.size() / item_size(kind.dtype), kind.dtype);
      const Bytes& side = tensors.side(operand);
      hash.add(side.data(), side.size() / sizeof(float), Format::Float32);
    }
    print(all, hash, kind.name());
    ++kernels;
  }
  ManyGradients gradients;
  gradients.measure_and_scale();
  Hash hash;
  hash.add(gradients.results().data(), gradients.results().size(), Format::Float64);
  for (const Gradient& gradient : gradients.entries())
    hash.add(gradient.data, gradient.numel, gradient.dtype);
  print(all, hash, "norms, scaling");
  printf("%016" PRIx64 " of %d results\n", all.value(), kernels);
}

}  // namespace
}  // namespace fused_optim::tsan

/// With the name of an instruction set, or the processor's best.
int main(int argc, char** argv) {
  if (argc > 1) fused_optim::cpu::set_isa(argv[1]);
  fused_optim::tsan::run_all();
}
