// From a TensorTable to kernels: one launch for each (device, dtype, rule variant).
#pragma once

#include "table.h"

namespace fused_optim {

/// Runs the step that the table describes. Every entry is checked already.
void launch(const TensorTable& table);

}  // namespace fused_optim
