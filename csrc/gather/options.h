// What a step's options need beside the rule's own tensors: gradients for the norm and to be
// zeroed, and averages.
#pragma once

#include "gather/entry_builder.h"
#include "gather/step_options.h"

namespace fused_optim {

/// The gradient as an operand; where it is not dense but has to be, a copy.
void add_grad(EntryBuilder& builder, TensorEntry& entry, const FoundParam& found,
              const StepOptions& options);

/// The average as an operand. The optimizer's first ones become the parameters after this step; one
/// that joins them begins as its parameter before it.
void add_average(EntryBuilder& builder, TensorEntry& entry, const FoundParam& found,
                 PyObject* states);

/// A parameter without a gradient: its average goes on towards it.
void add_average_alone(EntryBuilder& builder, const FoundParam& found);

}  // namespace fused_optim
