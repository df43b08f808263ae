#include "cpu/parallel.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cfenv>

// libgomp's entry point, which LLVM's libomp offers too. Called by name and left to the loader,
// it binds to the runtime that libtorch_cpu has brought in: -fopenmp would link one of the
// compiler's choice, and two runtimes in a process fight for the cores. Weak: a torch without
// OpenMP has none, and ranges then run on the caller's thread.
extern "C" void GOMP_parallel(void (*body)(void*), void* data, unsigned num_threads, unsigned flags)
    __attribute__((weak));

namespace fused_optim::cpu {
namespace {

// Measured on 2 cores: entering and leaving a region costs 2 to 6 us, as long as one thread needs
// for some 10,000 elements in cache; on a busy machine a region can cost a scheduler's slice.
constexpr int64_t kMinElementsPerThread = 32 * 1024;
// Ranges are handed out as threads ask: one that shares its core with another process takes
// fewer, instead of keeping all the others waiting.
constexpr int64_t kRangesPerThread = 16;
// A multiple of every vector width, so that only a tensor's own end is ragged.
constexpr int64_t kRangeAlignment = 1024;

/// How the calling thread rounds and whether it flushes subnormals (torch.set_flush_denormal): a
/// register of each thread, and one result needs one mode.
class CallersMode {
 public:
  CallersMode() { fegetenv(&mode_); }

  /// Takes this mode for as long as the other object lives.
  class Taken {
   public:
    explicit Taken(const CallersMode& callers) {
      fegetenv(&own_);
      fesetenv(&callers.mode_);
    }
    ~Taken() { fesetenv(&own_); }

   private:
    std::fenv_t own_;
  };

 private:
  std::fenv_t mode_;
};

struct Region {
  void (*body)(const void*, int64_t, int64_t);
  const void* context;
  int64_t total;
  int64_t range;
  CallersMode mode;
  std::atomic<int64_t> next{0};
};

void run_region(void* data) {
  auto& region = *static_cast<Region*>(data);
  const CallersMode::Taken mode(region.mode);
  for (;;) {
    const int64_t begin = region.next.fetch_add(region.range, std::memory_order_relaxed);
    if (begin >= region.total) return;
    region.body(region.context, begin, std::min(begin + region.range, region.total));
  }
}

}  // namespace

void parallel_ranges(int64_t total, void (*body)(const void*, int64_t, int64_t),
                     const void* context) {
  const int64_t threads = std::min<int64_t>(at::get_num_threads(), total / kMinElementsPerThread);
  if (threads <= 1 || GOMP_parallel == nullptr || at::in_parallel_region())
    return body(context, 0, total);

  const int64_t even = (total + threads * kRangesPerThread - 1) / (threads * kRangesPerThread);
  const int64_t range = (even + kRangeAlignment - 1) / kRangeAlignment * kRangeAlignment;
  Region region{body, context, total, range, {}};
  GOMP_parallel(run_region, &region, static_cast<unsigned>(threads), 0);
}

const char* openmp_runtime() {
  Dl_info info;
  if (GOMP_parallel == nullptr || !dladdr(reinterpret_cast<void*>(GOMP_parallel), &info)) return "";
  return info.dli_fname;
}

}  // namespace fused_optim::cpu
