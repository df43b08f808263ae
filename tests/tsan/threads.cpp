// What the engine finds in a process with torch, made of threads that ThreadSanitizer can see: it
// knows nothing of how an uninstrumented OpenMP runtime begins and joins a region, and would
// report each region's end as a race.
#include "threads.h"

#include <ATen/Parallel.h>

#include <atomic>
#include <latch>
#include <thread>
#include <vector>

namespace {

std::atomic<int> num_threads{1};
std::atomic<int64_t> regions{0};
thread_local bool is_in_region = false;

}  // namespace

extern "C" void GOMP_parallel(void (*body)(void*), void* data, unsigned count, unsigned /*flags*/) {
  ++regions;
  // All begin together: else the first could be through before the last one exists, and nothing
  // would run at the same time.
  std::latch all_here(count);
  const auto run = [&] {
    is_in_region = true;
    all_here.arrive_and_wait();
    body(data);
    is_in_region = false;
  };
  std::vector<std::thread> others;
  for (unsigned i = 1; i < count; ++i) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
}

namespace at {

int get_num_threads() {
  return num_threads;
}

bool in_parallel_region() {
  return is_in_region;
}

}  // namespace at

namespace fused_optim::tsan {

void set_num_threads(int count) {
  num_threads = count;
}

int64_t count_regions() {
  return regions;
}

}  // namespace fused_optim::tsan
