// Keeps Python's signal handlers from running between what one rank gives to a step and the step.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>

namespace fused_optim {

/// While it is entered, signals that Python handles (Ctrl-C) wait, as their handlers may raise:
/// this rank would leave a step that the others do, or that they wait for. In the main thread
/// alone, the only one that runs handlers; within another one of these it does nothing.
///
/// Not by a mask, which other threads don't have, and not by signal.signal, which would replace
/// what C code has put in the place of Python's own handler.
class SignalsLater {
 public:
  /// Once, when the module is imported.
  static void prepare();

  ~SignalsLater();

  void enter();

  /// Has those handled that came meanwhile. Throws error_already_set if a handler raises.
  void exit();

 private:
  bool is_holding_ = false;
  /// What the handler of a signal from just before has raised, which waits as well.
  std::optional<pybind11::error_already_set> earlier_;
};

}  // namespace fused_optim
