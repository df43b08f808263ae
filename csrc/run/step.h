// One step: gathered, then done.
#pragma once

#include <Python.h>

#include "gather/gather.h"
#include "gather/step_options.h"
#include "run/exchange.h"

namespace fused_optim {

/// Does the step. `options`: nullptr for none; takes what the step finds. Throws NotFused where the
/// step is torch's to do, and what gather() throws: with nothing changed.
///
/// No Python code runs between the last check and the last write, but while new state is made into
/// objects, before anything is written, and in other threads where the GIL is released; what the
/// step uses is owned by then.
void step(const StepArguments& arguments, StepOptions* options, Exchange* exchange);

}  // namespace fused_optim
