// All rules: the one list from which kernels, bindings, tests and benchmarks know them.
#pragma once

#include "rules/adadelta.h"
#include "rules/adagrad.h"
#include "rules/adam.h"
#include "rules/adamax.h"
#include "rules/asgd.h"
#include "rules/lion.h"
#include "rules/nadam.h"
#include "rules/radam.h"
#include "rules/rmsprop.h"
#include "rules/rprop.h"
#include "rules/sgd.h"

#define FUSED_OPTIM_FOR_EACH_RULE(X) \
  X(SGD)                             \
  X(Adam)                            \
  X(RMSprop)                         \
  X(Adagrad)                         \
  X(Adadelta)                        \
  X(Adamax)                          \
  X(NAdam)                           \
  X(RAdam)                           \
  X(Rprop)                           \
  X(ASGD)                            \
  X(Lion)

namespace fused_optim {

#define FUSED_OPTIM_SPEC(Rule) make_spec<Rule>(),
inline constexpr RuleSpec kRules[] = {FUSED_OPTIM_FOR_EACH_RULE(FUSED_OPTIM_SPEC)};
#undef FUSED_OPTIM_SPEC

inline constexpr int kNumRules = sizeof(kRules) / sizeof(RuleSpec);

}  // namespace fused_optim
