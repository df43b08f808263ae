// The instruction sets that the CPU kernels are compiled for, and the choice among them.
#pragma once

#include <string>
#include <vector>

namespace fused_optim::cpu {

enum class Isa { Baseline, AVX2, AVX512 };
constexpr int kNumIsas = 3;

/// Names of the instruction sets in this binary, weakest first.
std::vector<std::string> built_isas();
/// Whether this processor can run it.
bool is_supported(Isa isa);
/// The one in use: the best supported, unless set_isa chose another.
Isa current_isa();
const char* isa_name(Isa isa);
/// Chooses by name; throws std::runtime_error where it is unknown, not built or not supported.
void set_isa(const std::string& name);

}  // namespace fused_optim::cpu
