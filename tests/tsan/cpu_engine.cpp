// The CPU engine under ThreadSanitizer, in a program of its own: a Python interpreter and a torch
// that are not instrumented would hide races and report some that are none. Whatever runs on
// several threads must also give the bits of one thread and the baseline instruction set.
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cpu/isa.h"
#include "norms.h"
#include "steps.h"
#include "threads.h"

namespace fused_optim::tsan {
namespace {

constexpr int kThreads = 3;

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  const std::vector<std::string> built = cpu::built_isas();
  for (size_t i = 0; i < built.size(); ++i)
    if (cpu::is_supported(static_cast<cpu::Isa>(i))) names.push_back(built[i]);
  return names;
}

/// Calls run() for several threads, which it must have used.
template <class Run>
void run_in_parallel(const std::string& name, Run run) {
  const int64_t before = count_regions();
  set_num_threads(kThreads);
  run();
  set_num_threads(1);
  if (count_regions() == before) throw std::runtime_error(name + ": was not run in parallel");
}

/// make() makes what run(it) changes and has_same_bits compares.
template <class Make, class Run>
void check(const std::string& name, Make make, Run run) {
  cpu::set_isa("baseline");
  auto expected = make();
  run(expected);
  if (expected.has_same_bits(make())) throw std::runtime_error(name + ": nothing has changed");
  for (const std::string& isa : supported_isas()) {
    cpu::set_isa(isa);
    auto actual = make();
    run_in_parallel(name, [&] { run(actual); });
    if (!actual.has_same_bits(expected))
      throw std::runtime_error(name + ": " + isa + " on several threads differs from one thread");
  }
}

void check_steps(const StepCase& kind) {
  check(kind.name(), [&] { return Tensors(kind); }, [](Tensors& tensors) { tensors.run_steps(); });
}

void check_norms() {
  check(
      "norms", [] { return ManyGradients(); },
      [](ManyGradients& gradients) { gradients.measure_and_scale(); });
}

/// Two optimizers that step at the same time have nothing in common.
void check_two_callers(const StepCase& kind) {
  Tensors expected(kind), first(kind), second(kind);
  expected.run_steps();
  run_in_parallel("two callers", [&] {
    std::thread other([&] { second.run_steps(); });
    first.run_steps();
    other.join();
  });
  if (!first.has_same_bits(expected) || !second.has_same_bits(expected))
    throw std::runtime_error("two callers, " + kind.name() + ": differs from one");
}

void check_all() {
  const std::vector<StepCase> cases = step_cases();
  for (const StepCase& kind : cases) check_steps(kind);
  check_norms();
  check_two_callers(cases.front());
  std::string isas;
  for (const std::string& isa : supported_isas()) isas += " " + isa;
  std::printf("%zu kinds of steps in %lld parallel regions, instruction sets:%s\n", cases.size(),
              static_cast<long long>(count_regions()), isas.c_str());
}

}  // namespace
}  // namespace fused_optim::tsan

int main() {
  try {
    fused_optim::tsan::check_all();
  } catch (const std::exception& failure) {
    std::fprintf(stderr, "%s\n", failure.what());
    return 1;
  }
  return 0;
}
