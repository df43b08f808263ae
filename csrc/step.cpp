#include "step.h"

#include <Python.h>

#include <optional>

#include "finish.h"
#include "hold.h"
#include "launch.h"

namespace fused_optim {
namespace {

// The GIL is released where the step takes milliseconds, and where holding the tensors without it
// (well under a microsecond a parameter) costs little beside its update: 16,384 elements take 7 us.
constexpr int64_t kReleaseGilElements = 1 << 22;
constexpr int64_t kReleaseGilElementsPerTensor = 1 << 14;

/// Launches on a GPU don't take the host long enough.
bool is_worth_releasing_gil(const TensorTable& table) {
  int64_t elements = 0, tensors = 0;
  for (const TensorEntry& entry : table.entries) {
    if (entry.device.kind != DeviceKind::CPU) continue;
    elements += entry.numel;
    ++tensors;
  }
  return elements >= kReleaseGilElements && elements >= kReleaseGilElementsPerTensor * tensors;
}

class WithoutGil {
 public:
  WithoutGil() : thread_(PyEval_SaveThread()) {}
  ~WithoutGil() { PyEval_RestoreThread(thread_); }
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* thread_;
};

}  // namespace

void step_gathered(Gathered& gathered, const Amp& amp, const StepOptions& options, PyObject* state,
                   Found& found) {
  prepare(gathered.table);
  const bool releases_gil = is_worth_releasing_gil(gathered.table);
  const auto maybe_without_gil = [&](auto work) {
    std::optional<WithoutGil> no_gil;
    if (releases_gil) no_gil.emplace();
    return work();
  };
  std::optional<Hold> hold;
  if (releases_gil || !gathered.new_states.empty()) hold.emplace(gathered);
  NewStateObjects created(gathered.new_states);
  const bool is_done = maybe_without_gil([&] { return decide(gathered, amp, options, found); });
  if (is_done) created.link(state);
  try {
    if (hold) hold->check_unmoved();
  } catch (...) {
    created.undo(state);
    throw;
  }
  if (!is_done) return finish_skipped(gathered);
  commit(gathered);
  maybe_without_gil([&] { launch(gathered.table); });
  finish(gathered);
}

}  // namespace fused_optim
