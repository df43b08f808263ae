#include "run/step.h"

#include <Python.h>

#include <optional>

#include "gather/amp.h"
#include "gather/gather.h"
#include "run/after_kernels.h"
#include "run/clip_and_skip.h"
#include "run/commit.h"
#include "run/hold.h"
#include "run/launch.h"

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

/// Does what was gathered.
void step_gathered(Gathered& gathered, const Amp& amp, const StepOptions& options, PyObject* state,
                   const AcrossRanks* across_ranks, Found& found) {
  prepare(gathered.table);
  const bool releases_gil = is_worth_releasing_gil(gathered.table);
  const auto maybe_without_gil = [&](auto work) {
    std::optional<WithoutGil> no_gil;
    if (releases_gil) no_gil.emplace();
    return work();
  };
  std::optional<Hold> hold;
  // Making objects can run Python code, before a norm is taken of the gradients' memory.
  if (releases_gil || !gathered.new_states.empty())
    hold.emplace(gathered, Hold::What::TensorsAndMemory);
  else if (across_ranks != nullptr)
    hold.emplace(gathered, Hold::What::Tensors);
  NewStateObjects created(gathered.new_states);
  std::optional<Contributions> of_all_ranks;
  if (across_ranks != nullptr)
    of_all_ranks = across_ranks->exchange_sums(
        maybe_without_gil([&] { return sums_of_placements(gathered, options.norm_type()); }));
  const bool is_done = maybe_without_gil([&] {
    return clip_and_skip(gathered, amp, options, of_all_ranks ? &*of_all_ranks : nullptr, found);
  });
  if (is_done) created.link(state);
  try {
    if (hold) hold->check_unmoved();
  } catch (...) {
    created.undo(state);
    throw;
  }
  if (!is_done) return after_skipping(gathered);
  commit(gathered);
  maybe_without_gil([&] { launch(gathered.table); });
  after_kernels(gathered);
}

}  // namespace

void step(const StepArguments& arguments, StepOptions* asked, Exchange* exchange) {
  // As they are now: what runs meanwhile may change them.
  const StepOptions options = asked == nullptr ? StepOptions() : *asked;
  Found found{options.grad_norm, options.skipped_steps};
  const StepInExchange in_exchange(exchange);
  Amp amp(arguments.grad_scale, arguments.found_inf);
  if (amp.has_overflowed() && !options.any()) return;
  Gathered gathered = gather(arguments, amp, options);
  if (asked != nullptr && gathered.has_compact) asked->has_compact = true;
  step_gathered(gathered, amp, options, arguments.state, arguments.across_ranks, found);
  if (asked != nullptr) asked->publish(found);
}

}  // namespace fused_optim
