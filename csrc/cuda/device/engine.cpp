// The CUDA engine: from buckets to launches on each device's current stream.
#include "cuda/engine.h"

#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime.h>

#include <stdexcept>

#include "cuda/device/arrivals.h"
#include "cuda/device/kernels.h"
#include "cuda/device/launching.h"
#include "cuda/fill_tables.h"
#include "cuda/kernel_body.h"
#include "rules/registry.h"

namespace fused_optim::cuda {
namespace {

/// A kernel as errors speak of it.
struct KernelName {
  int rule;
  StateMask mask;
  KernelKind kind;
  Format format;
  Device device;

  std::string formats() const {
    if (kind == KernelKind::Compact) return "compact formats";
    return format_name(format) + std::string(kind == KernelKind::Uniform ? "" : " and others");
  }

  std::string text() const {
    const RuleSpec& spec = kRules[rule];
    std::string states;
    for (int i = 0; i < spec.num_states; ++i)
      if (spec.states[i].is_like_param() && has_state(mask, spec.places[i]))
        states += std::string(", ") + spec.states[i].name;
    return std::string(spec.name) + "<" + formats() + states +
           "> on cuda:" + std::to_string(device.index);
  }
};

struct Kernel {
  const void* function;
  uint32_t max_blocks;  // that the device runs at a time
};

/// The kernel for a table of this size. The device must be current.
template <class Table>
Kernel find_kernel(const KernelName& name) {
  const void* function = step_kernel<Table>(name.rule, name.mask, name.kind, name.format);
  if (function == nullptr) throw std::logic_error("fused_optim: no kernel " + name.text());
  return {function, max_blocks(function, kThreads, name)};
}

template <class Table>
void launch(const Kernel& kernel, uint32_t blocks, Table& table, cudaStream_t stream,
            const KernelName& name) {
  void* arguments[] = {&table};
  check(cudaLaunchKernel(kernel.function, dim3(blocks), dim3(kThreads), arguments, 0, stream),
        "launching", name);
}

KernelName name_of(int rule, const TensorEntry& entry) {
  return {rule, entry.mask, entry.kernel_kind(), entry.formats[kParam], entry.device};
}

/// Whether the kernel has counters to advance.
bool advances_any(const Bucket& bucket) {
  return std::any_of(
      bucket.entries, bucket.entries + bucket.num_entries,
      [&](const TensorEntry* entry) { return advances_on_device(*bucket.table, *entry); });
}

}  // namespace

bool is_built() {
  return true;
}

std::string built_archs() {
  std::string text;
  for (int i = 0; i < kNumCompiledArchs; ++i) {
    const int arch = kCompiledArchs[i];
    text += (i > 0 ? ", " : "") + std::to_string(arch / 100) + "." + std::to_string(arch / 10 % 10);
  }
  return text;
}

bool is_capturing(Device device) {
  const c10::cuda::CUDAGuard guard(device.index);
  return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

void prepare(int rule, const TensorEntry& entry) {
  const c10::cuda::CUDAGuard guard(entry.device.index);
  find_kernel<SmallKernelTable>(name_of(rule, entry));
  find_kernel<KernelTable>(name_of(rule, entry));
}

void apply(const Bucket& bucket) {
  const TensorEntry& first = bucket.first();
  const c10::cuda::CUDAGuard guard(first.device.index);
  const c10::cuda::CUDAStream stream = c10::cuda::getCurrentCUDAStream(first.device.index);
  const KernelName name = name_of(bucket.table->rule, first);

  uint32_t arrival = TableHead::kNoStepsToAdvance;
  const bool advances = advances_any(bucket);
  if (advances) {
    cudaStreamCaptureStatus status;
    unsigned long long capture = 0;
    check(cudaStreamGetCaptureInfo(stream, &status, &capture), "launching", name);
    arrival = arrival_for(stream.id(), status == cudaStreamCaptureStatusActive ? capture : 0);
  }
  const bool advances_alone = advances && arrival == TableHead::kNoStepsToAdvance;
  for (const FilledTable& filled : fill_tables(bucket, bucket.table->inputs_of(first.device)))
    filled.as_argument([&]<class Table>(Table& table) {
      const Kernel kernel = find_kernel<Table>(name);
      table.head.arrival = arrival;
      launch(kernel, std::clamp(table.head.num_chunks, 1u, kernel.max_blocks), table, stream, name);
      if (!advances_alone) return;
      // No counter of arrivals was left: the steps are advanced by a launch of their own.
      table.head.arrival = TableHead::kAllArrived;
      table.head.num_chunks = 0;
      launch(kernel, 1, table, stream, name);
    });
}

}  // namespace fused_optim::cuda
