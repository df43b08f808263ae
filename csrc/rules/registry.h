// All rules: the one list from which kernels, bindings, tests and benchmarks know them.
#pragma once

#include "adam.h"
#include "rmsprop.h"
#include "sgd.h"

#define FUSED_OPTIM_FOR_EACH_RULE(X) \
  X(SGD)                             \
  X(Adam)                            \
  X(RMSprop)

namespace fused_optim {

#define FUSED_OPTIM_SPEC(Rule) make_spec<Rule>(),
inline constexpr RuleSpec kRules[] = {FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_SPEC)};
#undef FUSED_OPTIM_SPEC

inline constexpr int kNumRules = sizeof(kRules) / sizeof(RuleSpec);

}  // namespace fused_optim
