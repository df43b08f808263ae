// The CPU kernels for the compiler's default instruction set.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/norm_kernels.h"
#include "rules/one_element_states.h"
#include "step/entry_values.h"
#include "step/kernel_types.h"

namespace fused_optim::cpu::baseline {
#include "cpu/kernels.inc"
#include "cpu/norm.inc"
}  // namespace fused_optim::cpu::baseline
