#include "run/signals_later.h"

#include <pthread.h>

#include <atomic>
#include <csignal>
#include <utility>
#include <vector>

namespace py = pybind11;

namespace fused_optim {
namespace {

// Of the process, as handlers are. The GIL guards the first; a handler touches the others only.
std::vector<int> held;
std::atomic<bool> is_held = false;
std::atomic<bool> has_come[NSIG];
struct sigaction handler_before[NSIG];  // of signals that have ever been held

// Python's bytecode is none of what follows: it would run the handlers of signals from just before.
PyObject* g_handler_of;  // _signal.getsignal
unsigned long g_main_thread;

void pass_on(int signal, siginfo_t* info, void* context) {
  const struct sigaction& before = handler_before[signal];
  if ((before.sa_flags & SA_SIGINFO) != 0) return before.sa_sigaction(signal, info, context);
  if (before.sa_handler == SIG_IGN) return;
  if (before.sa_handler != SIG_DFL) return before.sa_handler(signal);
  sigaction(signal, &before, nullptr);
  raise(signal);
}

extern "C" void note(int signal, siginfo_t* info, void* context) {
  if (is_held) {
    has_come[signal] = true;
    if (is_held || !has_come[signal].exchange(false)) return;
  }
  // Nothing is held any more: another thread was about to note this one; or C code (system(3), in
  // another thread) has put back what it had replaced meanwhile, which was this handler.
  pass_on(signal, info, context);
}

bool is_noted(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == note;
}

bool is_ignored(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) == 0 && action.sa_handler == SIG_IGN;
}

bool is_main_thread() {
  return PyThread_get_thread_ident() == g_main_thread;
}

/// Those with a handler of Python's, or of C code that has come in its place.
std::vector<int> handled_by_python() {
  const py::handle handler_of = g_handler_of;
  std::vector<int> found;
  for (int signal = 1; signal < NSIG; ++signal)
    if (PyCallable_Check(handler_of(signal).ptr())) found.push_back(signal);
  return found;
}

void hold(std::vector<int> signals) {
  held = std::move(signals);
  is_held = true;
  for (const int signal : held) {
    struct sigaction action{};
    // Ignored ones need no other handler, and are mostly so for a while, as by system(3).
    if (sigaction(signal, nullptr, &action) != 0 || is_noted(action) || is_ignored(action))
      continue;
    handler_before[signal] = action;
    action.sa_sigaction = note;
    action.sa_flags = (action.sa_flags | SA_SIGINFO) & ~SA_RESETHAND;
    sigaction(signal, &action, nullptr);
  }
}

void put_handlers_back() {
  for (const int signal : held) {
    struct sigaction now{};
    // The step may have run code of the user's that has set another handler, which stays.
    if (sigaction(signal, nullptr, &now) == 0 && is_noted(now))
      sigaction(signal, &handler_before[signal], nullptr);
  }
  is_held = false;
}

/// Puts the handlers back, and sends them what has come, as it would have reached them.
void let_go() {
  if (!is_held) return;  // a forked process's step
  put_handlers_back();
  for (const int signal : std::exchange(held, {}))
    if (has_come[signal].exchange(false)) raise(signal);
}

/// A forked process has no part in the step, which may be another thread's of its parent: nobody
/// would let go. What has come has come to the parent.
void let_go_in_child() {
  g_main_thread = PyThread_get_thread_ident();
  if (!is_held) return;
  put_handlers_back();
  for (std::atomic<bool>& one : has_come) one = false;
}

}  // namespace

void SignalsLater::prepare() {
  const py::module_ threading = py::module_::import("threading");
  g_main_thread = threading.attr("main_thread")().attr("ident").cast<unsigned long>();
  py::object handler_of = py::module_::import("_signal").attr("getsignal");
  g_handler_of = handler_of.release().ptr();
  pthread_atfork(nullptr, nullptr, let_go_in_child);
}

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
