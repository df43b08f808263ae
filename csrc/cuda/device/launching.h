// What every launch needs: errors that name the kernel, and how many blocks a device runs at a
// time.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "cuda/engine.h"

namespace fused_optim::cuda {

/// Throws unless the call succeeded. `name.text()`: the kernel as errors speak of it.
template <class Name>
void check(cudaError_t error, const char* doing, const Name& name) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // so that the next call doesn't report it once more
  std::string message = std::string("fused_optim: ") + doing + " kernel " + name.text() +
                        " failed: " + cudaGetErrorString(error) + " (" + cudaGetErrorName(error) +
                        ")";
  if (error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction)
    message += ". It was compiled for architectures " + built_archs() +
               "; set TORCH_CUDA_ARCH_LIST to this device's and install again";
  throw std::runtime_error(message);
}

/// Blocks of the kernel that the device `name.device` runs at a time, asked for once. The device
/// must be current.
template <class Name>
uint32_t max_blocks(const void* function, uint32_t threads, const Name& name) {
  static std::mutex mutex;
  static std::map<std::pair<const void*, int>, uint32_t> known;
  const std::lock_guard lock(mutex);
  uint32_t& blocks = known[{function, name.device.index}];
  if (blocks == 0) {
    int per_multiprocessor = 0, multiprocessors = 0;
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, function,
                                                        static_cast<int>(threads), 0),
          "preparing", name);
    check(
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, name.device.index),
        "preparing", name);
    blocks = static_cast<uint32_t>(std::max(1, per_multiprocessor * multiprocessors));
  }
  return blocks;
}

}  // namespace fused_optim::cuda
