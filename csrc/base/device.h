// Devices as the engines tell them apart.
#pragma once

#include <cstdint>

namespace fused_optim {

enum class DeviceKind : uint8_t { CPU, CUDA };

struct Device {
  DeviceKind kind;
  int8_t index;
  friend bool operator==(Device a, Device b) { return a.kind == b.kind && a.index == b.index; }
};

}  // namespace fused_optim
