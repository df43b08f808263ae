// A parameter's gradient on its way into the table, and what a step's options need of it.
#pragma once

#include "gather/entry_builder.h"
#include "gather/step_options.h"

namespace fused_optim {

/// The gradient as an operand; where it is not dense but has to be, a copy. `for_norm`: where a
/// norm finds it.
void add_grad(EntryBuilder& builder, Gathered& gathered, TensorEntry& entry,
              const FoundParam& found, const StepOptions& options, Gradients& for_norm);

}  // namespace fused_optim
