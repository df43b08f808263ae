// The CPU kernels for the compiler's default instruction set.
#include <algorithm>
#include <cstring>
#include <vector>

#include "../instances.h"
#include "../rules/scalar_states.h"
#include "kernels.h"
#include "norm_kernels.h"
#include "strided.h"

namespace fused_optim::cpu::baseline {
#include "kernels.inc"
#include "norm.inc"
}  // namespace fused_optim::cpu::baseline
