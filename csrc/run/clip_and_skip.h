// Between gather and kernels: the norm of the gradients, and what it decides.
#pragma once

#include "gather/gather.h"

namespace fused_optim {

/// What the options say of it.
ClipAndSkip clip_and_skip_from(const StepOptions& options);

/// This rank's part of a norm over several: the sums for its plain tensors and for each
/// placement.
at::Tensor sums_of_placements(const Gathered& gathered, NormType type);

/// Takes the norm that the options ask for and notes it in `found`. The coefficient goes into the
/// table, known to the host or as an address. Returns false where the host knows that the step is
/// skipped. Runs without the GIL. `of_all_ranks`: what gives the norm of several ranks; nullptr:
/// the gradients are all there are.
bool clip_and_skip(Gathered& gathered, const Amp& amp, const StepOptions& options,
                   const Contributions* of_all_ranks, Found& found);

}  // namespace fused_optim
