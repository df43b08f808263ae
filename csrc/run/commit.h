// Makes a checked step visible in the tensors that exist.
#pragma once

#include "gather/gather.h"

namespace fused_optim {

/// Makes the step visible in what exists: steps advance, versions are bumped.
void commit(Gathered& gathered);

}  // namespace fused_optim
