#include "cpu/isa.h"

#include <atomic>
#include <stdexcept>

namespace fused_optim::cpu {
namespace {

#if defined(__x86_64__)
constexpr Isa kBuilt[] = {Isa::Baseline, Isa::AVX2, Isa::AVX512};
#else
constexpr Isa kBuilt[] = {Isa::Baseline};
#endif

Isa best_supported() {
  Isa best = Isa::Baseline;
  for (Isa isa : kBuilt)
    if (is_supported(isa)) best = isa;
  return best;
}

std::atomic<Isa>& chosen() {
  static std::atomic<Isa> isa{best_supported()};
  return isa;
}

}  // namespace

const char* isa_name(Isa isa) {
  constexpr const char* names[kNumIsas] = {"baseline", "avx2", "avx512"};
  return names[static_cast<int>(isa)];
}

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (Isa isa : kBuilt) names.emplace_back(isa_name(isa));
  return names;
}

bool is_supported(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::AVX2)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("f16c");
  if (isa == Isa::AVX512)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("fma");
#endif
  return isa == Isa::Baseline;
}

Isa current_isa() {
  return chosen().load(std::memory_order_relaxed);
}

void set_isa(const std::string& name) {
  for (Isa isa : kBuilt) {
    if (name != isa_name(isa)) continue;
    if (!is_supported(isa))
      throw std::runtime_error("fused_optim: instruction set '" + name +
                               "' was asked for, but this processor does not support it");
    chosen().store(isa, std::memory_order_relaxed);
    return;
  }
  std::string known;
  for (const std::string& built : built_isas()) known += (known.empty() ? "" : ", ") + built;
  throw std::runtime_error("fused_optim: unknown instruction set '" + name +
                           "'; this build has: " + known);
}

}  // namespace fused_optim::cpu
