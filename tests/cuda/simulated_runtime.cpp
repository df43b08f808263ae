// A CUDA runtime for machines without a GPU: preloaded in place of libcudart, it runs this
// project's kernels on the host, so that tests can step CUDA tensors through gather, launch and
// kernel. torch's own kernels are not run, but for the few that fill a tensor with a number.
//
// Device memory is inaccessible but to kernels and copies: a read of it on the host is a crash.
// Launches check that they use their own device's memory. Work is done at once, in order; a
// capture keeps it for its graph's launches. Nothing here imitates timing or concurrency.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <typeinfo>
#include <vector>

#include "cuda/host_block.h"
#include "cuda/kernel_body.h"
#include "cuda/norm_body.h"
#include "step/kernel_types.h"

namespace {

using namespace fused_optim;
using namespace fused_optim::cuda;

constexpr int kDevices = 2;
constexpr int kMultiprocessors = 3;  // few, so that blocks have several chunks each

struct Allocation {
  size_t size;
  int device;
};
using Work = std::function<void()>;
struct Capture {
  unsigned long long id;
  std::vector<Work> work;
};
struct Stream {
  Capture* capture = nullptr;
};

thread_local int current_device = 0;
unsigned long long captures = 0;
int launches = 0, synchronizations = 0;
size_t argument_bytes = 0;  // of this project's last kernel
std::map<uintptr_t, Allocation>& allocations() {
  static std::map<uintptr_t, Allocation> all;
  return all;
}
std::map<const void*, const char*>& kernel_names() {
  static std::map<const void*, const char*> names;
  return names;
}
Stream legacy_stream;

Stream& stream_of(cudaStream_t stream) {
  const auto handle = reinterpret_cast<uintptr_t>(stream);
  return handle <= 2 ? legacy_stream : *reinterpret_cast<Stream*>(stream);
}

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "simulated CUDA runtime: %s\n", what.c_str());
  std::abort();
}

/// The allocation that this address lies in, with its beginning, or nullptr.
const std::pair<const uintptr_t, Allocation>* allocation_at(const void* address) {
  const auto begin = reinterpret_cast<uintptr_t>(address);
  auto next = allocations().upper_bound(begin);
  if (next == allocations().begin()) return nullptr;
  --next;
  return begin < next->first + next->second.size ? &*next : nullptr;
}

int device_at(const void* address) {
  const auto* allocation = allocation_at(address);
  return allocation == nullptr ? -1 : allocation->second.device;
}

/// Makes device memory accessible for as long as a kernel or copy runs: where these addresses lie,
/// or all of it where there are none. Thousands of copies between thousands of tensors would take
/// long otherwise.
struct Access {
  using Addresses = std::vector<const void*>;

  explicit Access(const Addresses& addresses = {}) : addresses_(addresses) {
    protect(PROT_READ | PROT_WRITE);
  }
  ~Access() { protect(PROT_NONE); }

 private:
  void protect(int access) const {
    const auto protect = [=](const auto& allocation) {
      mprotect(reinterpret_cast<void*>(allocation.first), allocation.second.size, access);
    };
    for (const void* address : addresses_)
      if (const auto* allocation = allocation_at(address)) protect(*allocation);
    if (!addresses_.empty()) return;
    for (const auto& allocation : allocations()) protect(allocation);
  }

  const Addresses addresses_;
};

cudaError_t submit(cudaStream_t stream, Work work, const Access::Addresses& addresses = {}) {
  if (Capture* capture = stream_of(stream).capture) {
    capture->work.push_back(std::move(work));
  } else {
    const Access access(addresses);
    work();
  }
  return cudaSuccess;
}

void check_address(const void* address, int device, const char* what) {
  if (address != nullptr && device_at(address) != device)
    die(std::string(what) + " is not on the kernel's device");
}

void check_operand(const EntryView& entry, void* data, int device, const char* what) {
  if (entry.numel() > 0) check_address(data, device, what);
}

template <class Kernel>
void check_compact(const TableView& table, const EntryView& entry, int device) {
  const CompactView compact = Kernel::compact_at(table, entry);
  for (int k = 0; k < Kernel::kOperands; ++k)
    if (k != kGrad) check_operand(entry, compact.side(k), device, "a remainder or scales");
  if (!Kernel::kHasStep && compact.has_device_counter())
    check_address(compact.device_counter(), device, "a counter of steps");
}

template <class Kernel>
void check_addresses(const TableView& table, int device) {
  const TableHead& head = table.head;
  check_address(head.found_inf, device, "found_inf");
  check_address(head.grad_scale, device, "grad_scale");
  check_address(head.decision, device, "the decision");
  constexpr int row_size = RowView::size(Kernel::kHyperparameters);
  for (uint32_t row = head.first_row; row < head.first_entry; row += row_size)
    for (int i = 0; i < Kernel::kHyperparameters; ++i)
      if ((table.words[row + 1] >> i) & 1u)
        check_address(reinterpret_cast<const void*>(table.words[row + 2 + i]), device,
                      "a hyperparameter");
  for (uint32_t i = 0; i < head.num_entries; ++i) {
    const EntryView entry = Kernel::entry_at(table, i);
    for (int k = 0; k < Kernel::kOperands; ++k)
      check_operand(entry, entry.operand(k), device, "an operand");
    if (head.has_averages())
      check_operand(entry, entry.average(Kernel::kOneElementStates), device, "an average");
    if (entry.flags() & EntryView::kDeviceStep) check_address(entry.device_step(), device, "step");
    for (int k = 0; k < Kernel::kOneElementStates; ++k)
      check_address(entry.one_element_state(k), device, "a state of one element");
    if constexpr (Kernel::kIsCompact) check_compact<Kernel>(table, entry, device);
  }
}

template <class Kernel>
void run_step_kernel(dim3 grid, dim3 block, const TableView& table, int device) {
  check_addresses<Kernel>(table, device);
  for (uint32_t b = 0; b < grid.x; ++b) {
    typename Kernel::Scalars scalars;
    Kernel::run(HostBlock{b, grid.x, block.x}, table, scalars);
  }
  if (table.head.arrival == TableHead::kNoStepsToAdvance) return;
  for (uint32_t t = 0; t < block.x; ++t) Kernel::advance_steps(t, block.x, table);
}

/// "OfILi505EE": how a table's size stands in the mangled name of a kernel.
template <class Table>
std::string mangled_size() {
  const std::string name = typeid(Table).name();
  return name.substr(name.find("OfILi"));
}

/// Calls visit(table) with the kernel's argument, a copy of which is what a launch keeps. It is
/// known by its size.
template <class Small, class Large, class Visit>
void with_table(const std::string& name, void** arguments, Visit visit) {
  const auto is = [&]<class Table>(const Table*) {
    return name.find(mangled_size<Table>()) != std::string::npos;
  };
  const bool is_small = is(static_cast<Small*>(nullptr));
  if (!is_small && !is(static_cast<Large*>(nullptr))) die("no table of known size in " + name);
  argument_bytes = is_small ? sizeof(Small) : sizeof(Large);
  if (is_small)
    visit(*static_cast<const Small*>(arguments[0]));
  else
    visit(*static_cast<const Large*>(arguments[0]));
}

/// "INS_4AdamELj3Ef": how rule, states and dtype stand in the mangled name of a kernel.
template <class I>
std::string mangled_arguments() {
  const std::string name = typeid(I).name(), prefix = "N11fused_optim11KernelTypes";
  std::string arguments = name.substr(prefix.size(), name.size() - prefix.size() - 2);
  // The kernel is in this namespace itself: its name has a shorter one for it.
  const std::string scope = "NS_4cuda";
  if (const size_t at = arguments.find(scope); at != std::string::npos)
    arguments.replace(at, scope.size(), "NS0_");
  return arguments;
}

/// visit(Element()) for all that a step's kernel is compiled for.
template <class Visit>
void for_each_element(Visit visit) {
  for (int format = 0; format < kNumFormats; ++format)
    with_element(KernelKind::Uniform, static_cast<Format>(format), visit);
  visit(Mixed<float>());
  visit(Mixed<double>());
  visit(Compact());
}

bool run_ours(const std::string& name, dim3 grid, dim3 block, void** arguments,
              cudaStream_t stream) {
  const size_t at = name.find("step_kernel_of");
  if (at == std::string::npos) return false;
  const std::string rest = name.substr(at + std::strlen("step_kernel_of"));
  bool found = false;
  for_each_element([&]<class Element>(Element) {
    for (int rule = 0; rule < kNumRules; ++rule)
      for (StateMask states = 0; states < (1u << kMaxStates); ++states)
        with_kernel_types<Element>(rule, states, [&]<class Types>(Types) {
          if (!rest.starts_with(mangled_arguments<Types>())) return;
          found = true;
          with_table<SmallKernelTable, KernelTable>(rest, arguments, [&](const auto& table) {
            const int device = current_device;
            submit(stream, [=] {
              run_step_kernel<StepKernel<typename Types::Rule, Types::states, Element>>(
                  grid, block, TableView(table), device);
            });
          });
        });
  });
  ++launches;
  return found;
}

/// "NS_8bfloat16E": how a type stands in the mangled name of a kernel.
template <class T>
std::string mangled() {
  std::string name = typeid(T).name();
  const std::string scope = "N11fused_optim";
  if (name.starts_with(scope)) name = "NS_" + name.substr(scope.size());
  return name;
}

std::string mangled(NormType type) {
  return "LNS_8NormTypeE" + std::to_string(static_cast<int>(type)) + "E";
}

template <class Visit>
void for_each_storage(Visit visit) {
  for (int dtype = 0; dtype < kNumFormats; ++dtype) with_storage(static_cast<Format>(dtype), visit);
}

template <class Visit>
void for_each_norm_type(Visit visit) {
  for (int type = 0; type < kNumNormTypes; ++type)
    with_norm_type(static_cast<NormType>(type), visit);
}

/// Calls visit(table) with the kernel's argument, of gradients on this device.
template <class Visit>
void with_gradients(const std::string& name, void** arguments, Visit visit) {
  with_table<SmallGradientTable, GradientTable>(name, arguments, [&](const auto& table) {
    for (uint32_t i = 0; i < table.head.num_entries; ++i)
      check_address(table.entries[i].data, current_device, "a gradient");
    check_address(table.head.sums, current_device, "a norm's sums");
    check_address(table.head.norm, current_device, "a norm");
    visit(table);
  });
}

/// The kernels for norms and scaling.
bool run_norm(const std::string& name, dim3 grid, void** arguments, cudaStream_t stream) {
  bool found = false;
  const auto is = [&](const std::string& kernel) {
    return name.find(kernel) != std::string::npos && (found = true);
  };
  for_each_storage([&]<class Storage>(Storage) {
    if (is("15scale_kernel_ofI" + mangled<Storage>() + "NS"))
      with_gradients(name, arguments, [&](const auto& table) {
        submit(stream, [=] {
          for (uint32_t b = 0; b < grid.x; ++b)
            for (uint32_t t = 0; t < kNormColumns; ++t)
              ScaleKernel<Storage>::run(b, t, grid.x, kNormColumns, GradientTableView(table));
        });
      });
    for_each_norm_type([&]<NormType type>(std::integral_constant<NormType, type>) {
      if (!is("13sum_kernel_ofI" + mangled(type) + mangled<Storage>() + "NS")) return;
      with_gradients(name, arguments, [&](const auto& table) {
        submit(stream, [=] {
          for (uint32_t b = 0; b < grid.x; ++b)
            for (uint32_t chunk = b; chunk < table.head.num_chunks; chunk += grid.x)
              SumKernel<type, Storage>::sum_chunk(GradientTableView(table), chunk,
                                                  sum_block_on_host<type, Storage>);
        });
      });
    });
  });
  for_each_norm_type([&]<NormType type>(std::integral_constant<NormType, type>) {
    if (!is("21finish_norm_kernel_ofI" + mangled(type) + "E")) return;
    const auto* sums = *static_cast<const double**>(arguments[0]);
    const int64_t count = *static_cast<int64_t*>(arguments[1]);
    const auto clip_and_skip = *static_cast<ClipAndSkip*>(arguments[2]);
    check_address(sums, current_device, "a norm's sums");
    check_address(clip_and_skip.decision, current_device, "the decision");
    check_address(clip_and_skip.grad_scale, current_device, "grad_scale");
    check_address(clip_and_skip.found_inf, current_device, "found_inf");
    check_address(clip_and_skip.skipped_steps, current_device, "skipped_steps");
    submit(stream, [=] {
      const double sum = sum_block_on_host<type_of_sums(type), double>(sums, count);
      clip_and_skip.decide(norm_of_sum(type, sum));
    });
  });
  if (found) ++launches;
  return found;
}

/// torch's tensor.fill_(number) for float and double: (count, functor, pointers to the tensors).
bool run_fill(const std::string& name, void** arguments, cudaStream_t stream) {
  if (name.find("FillFunctor") == std::string::npos) return false;
  const int count = *static_cast<int*>(arguments[0]);
  char* data = *static_cast<char**>(arguments[2]);
  const auto fill = [&]<class T>(T value) {
    submit(stream, [=] {
      for (int i = 0; i < count; ++i) std::memcpy(data + i * sizeof(T), &value, sizeof(T));
    });
    return true;
  };
  const auto is = [&](const char* type) {
    return name.find(std::string("FillFunctorI") + type + "E") != std::string::npos;
  };
  if (is("f")) return fill(*static_cast<uint32_t*>(arguments[1]));
  if (is("d")) return fill(*static_cast<uint64_t*>(arguments[1]));
  if (is("N3c108BFloat16")) return fill(*static_cast<uint16_t*>(arguments[1]));
  if (is("N3c104Half")) return fill(*static_cast<uint16_t*>(arguments[1]));
  if (is("a") || is("h")) return fill(*static_cast<uint8_t*>(arguments[1]));
  if (is("s")) return fill(*static_cast<uint16_t*>(arguments[1]));
  if (is("l")) return fill(*static_cast<uint64_t*>(arguments[1]));
  if (is("N3c107complexIfE")) return fill(*static_cast<uint64_t*>(arguments[1]));
  return false;
}

void run_kernel(const void* function, dim3 grid, dim3 block, void** arguments,
                cudaStream_t stream) {
  const std::string name = kernel_names()[function];
  if (run_ours(name, grid, block, arguments, stream) || run_norm(name, grid, arguments, stream) ||
      run_fill(name, arguments, stream))
    return;
  die("no way to run " + name);
}

}  // namespace

extern "C" {

int simulated_launches() {
  return launches;
}
int simulated_argument_bytes() {
  return static_cast<int>(argument_bytes);
}
int simulated_synchronizations() {
  return synchronizations;
}

// Kernels.
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, uint3*, uint3*,
                            dim3*, dim3*, int*) {
  kernel_names()[host] = name;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t,
                               cudaStream_t stream) {
  run_kernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, stream);
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void** arguments, size_t,
                             cudaStream_t stream) {
  if (std::getenv("SIMULATED_LAUNCH_FAILURE")) return cudaErrorLaunchOutOfResources;
  run_kernel(function, grid, block, arguments, stream);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  if (std::getenv("SIMULATED_OTHER_ARCH")) return cudaErrorNoKernelImageForDevice;
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->binaryVersion = attributes->ptxVersion = 90;
  attributes->maxThreadsPerBlock = 1024;
  return cudaSuccess;
}

// Devices.
cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current_device;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  current_device = device;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof(*properties));
  std::strcpy(properties->name, "simulated");
  properties->major = 9;
  properties->multiProcessorCount = kMultiprocessors;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->totalGlobalMem = size_t{1} << 34;
  for (int& size : properties->maxGridSize) size = 65535;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount      ? kMultiprocessors
           : attribute == cudaDevAttrComputeCapabilityMajor ? 9
                                                            : 0;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -1;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) {
  *can = 1;
  return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) {
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  return cudaSuccess;
}
cudaError_t cudaPeekAtLastError() {
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  ++synchronizations;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *function = nullptr;
  if (result) *result = cudaDriverEntryPointSymbolNotFound;
  return cudaErrorSymbolNotFound;
}

// The one function of the driver's library that torch calls: whether a device is in use.
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return 0;
}

// Memory.
cudaError_t cudaMalloc(void** pointer, size_t size) {
  *pointer = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (*pointer == MAP_FAILED) return cudaErrorMemoryAllocation;
  allocations()[reinterpret_cast<uintptr_t>(*pointer)] = {size, current_device};
  return cudaSuccess;
}
cudaError_t cudaFree(void* pointer) {
  const auto found = allocations().find(reinterpret_cast<uintptr_t>(pointer));
  if (found == allocations().end()) return cudaSuccess;
  munmap(pointer, found->second.size);
  allocations().erase(found);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = size_t{1} << 34;
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  *attributes = {};
  const int device = device_at(pointer);
  attributes->type = device < 0 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice;
  attributes->device = device < 0 ? 0 : device;
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** pointer, size_t size, unsigned) {
  *pointer = std::malloc(size);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* pointer) {
  std::free(pointer);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind,
                            cudaStream_t stream) {
  return submit(stream, [=] { std::memcpy(to, from, size); }, {to, from});
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t size, cudaMemcpyKind) {
  ++synchronizations;
  return submit(nullptr, [=] { std::memcpy(to, from, size); }, {to, from});
}
cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t size,
                                cudaStream_t stream) {
  return submit(stream, [=] { std::memcpy(to, from, size); }, {to, from});
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t size, cudaStream_t stream) {
  return submit(stream, [=] { std::memset(to, value, size); }, {to});
}

// Streams and events.
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  *stream = reinterpret_cast<cudaStream_t>(new Stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  ++synchronizations;
  return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = reinterpret_cast<cudaEvent_t>(new char);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete reinterpret_cast<char*>(event);
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) {
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t, cudaStream_t, unsigned) {
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t) {
  return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  ++synchronizations;
  return cudaSuccess;
}

// Graphs.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  stream_of(stream).capture = new Capture{++captures, {}};
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = reinterpret_cast<cudaGraph_t>(stream_of(stream).capture);
  stream_of(stream).capture = nullptr;
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  const bool active = stream_of(stream).capture != nullptr;
  *status = active ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, cudaStreamCaptureStatus* status,
                                     unsigned long long* id, cudaGraph_t* graph,
                                     const cudaGraphNode_t** dependencies,
                                     const cudaGraphEdgeData** edges, size_t* count) {
  Capture* capture = stream_of(stream).capture;
  cudaStreamIsCapturing(stream, status);
  if (id) *id = capture ? capture->id : 0;
  if (graph) *graph = reinterpret_cast<cudaGraph_t>(capture);
  if (dependencies) *dependencies = nullptr;
  if (edges) *edges = nullptr;
  if (count) *count = 0;
  return cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t*, size_t* count) {
  *count = reinterpret_cast<Capture*>(graph)->work.size();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* executable, cudaGraph_t graph,
                                          unsigned long long) {
  *executable = reinterpret_cast<cudaGraphExec_t>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t) {
  const Access access;
  for (const Work& work : reinterpret_cast<Capture*>(executable)->work) work();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) {
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  delete reinterpret_cast<Capture*>(executable);
  return cudaSuccess;
}

}  // extern "C"
