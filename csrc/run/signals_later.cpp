#include "run/signals_later.h"

#include <csignal>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace fused_optim {
namespace {

struct Held {
  int signal;
  struct sigaction before;
};

// Of the process, as handlers are. The GIL guards the first two; a handler touches only the third.
std::vector<Held> held;
bool is_held = false;
volatile std::sig_atomic_t has_come[NSIG];

extern "C" void note(int signal) {
  has_come[signal] = 1;
}

bool is_main_thread() {
  const py::module_ threading = py::module_::import("threading");
  return threading.attr("get_ident")().equal(threading.attr("main_thread")().attr("ident"));
}

/// Those with a handler of Python's, or of C code that has come in its place.
std::vector<Held> handled_by_python() {
  const py::object handler_of = py::module_::import("_signal").attr("getsignal");
  std::vector<Held> found;
  for (int signal = 1; signal < NSIG; ++signal) {
    Held one{signal, {}};
    if (PyCallable_Check(handler_of(signal).ptr()) && sigaction(signal, nullptr, &one.before) == 0)
      found.push_back(one);
  }
  return found;
}

void hold(std::vector<Held> signals) {
  held = std::move(signals);
  is_held = true;
  for (const Held& one : held) {
    struct sigaction noting = one.before;
    noting.sa_handler = note;
    noting.sa_flags &= ~(SA_SIGINFO | SA_RESETHAND);
    has_come[one.signal] = 0;
    sigaction(one.signal, &noting, nullptr);
  }
}

/// Puts the handlers back, and sends them what has come, as it would have reached them.
void let_go() {
  for (const Held& one : held) {
    struct sigaction now{};
    // The step may have run code of the user's that has set another handler, which stays.
    if (sigaction(one.signal, nullptr, &now) == 0 && now.sa_handler == note)
      sigaction(one.signal, &one.before, nullptr);
    if (has_come[one.signal] != 0) raise(one.signal);
  }
  held.clear();
  is_held = false;
}

}  // namespace

SignalsLater::~SignalsLater() {
  if (is_holding_) let_go();
}

void SignalsLater::enter() {
  if (is_held || !is_main_thread()) return;
  hold(handled_by_python());
  is_holding_ = true;
  if (PyErr_CheckSignals() != 0) earlier_.emplace();
}

void SignalsLater::exit() {
  if (!std::exchange(is_holding_, false)) return;
  let_go();
  if (earlier_) throw *std::exchange(earlier_, std::nullopt);
  if (PyErr_CheckSignals() != 0) throw py::error_already_set();
}

}  // namespace fused_optim
