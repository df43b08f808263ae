// One step, from what was gathered to what is done.
#pragma once

#include <Python.h>

#include "amp.h"
#include "decide.h"
#include "gather.h"

namespace fused_optim {

/// Does what was gathered. No Python code runs between the last check and the last write, but while
/// new state is made into objects, before anything is written, and in other threads where the GIL
/// is released; what the step uses is owned by then.
void step_gathered(Gathered& gathered, const Amp& amp, const StepOptions& options, PyObject* state,
                   Found& found);

}  // namespace fused_optim
