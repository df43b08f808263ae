// All formats: the one list from which kernels know them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "storage/bfloat16.h"
#include "storage/float16.h"
#include "storage/format.h"

#define FUSED_OPTIM_FOR_EACH_FORMAT(X) \
  X(Float32, float)                    \
  X(Float64, double)                   \
  X(BFloat16, bfloat16)                \
  X(Float16, float16)

namespace fused_optim {

/// A format at run time.
enum class Format : uint8_t {
#define FUSED_OPTIM_NAME(name, Storage) name,
  FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_NAME)
#undef FUSED_OPTIM_NAME
};

#define FUSED_OPTIM_SIZE(name, Storage) sizeof(Storage),
inline constexpr int64_t kItemSizes[] = {FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_SIZE)};
#undef FUSED_OPTIM_SIZE

constexpr int kNumFormats = sizeof(kItemSizes) / sizeof(int64_t);

constexpr int64_t item_size(Format format) {
  return kItemSizes[static_cast<int>(format)];
}

template <class Storage>
constexpr Format format_of() {
#define FUSED_OPTIM_IS(name, Type) \
  if constexpr (std::is_same_v<Storage, Type>) return Format::name;
  FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_IS)
#undef FUSED_OPTIM_IS
}

/// Elements in 16 bytes.
template <class Storage>
constexpr int kPackSize = 16 / sizeof(Storage);

/// visit(Storage()) for the type of this format.
template <class Visit>
auto with_storage(Format format, Visit visit) {
  if (format == Format::Float64) return visit(double());
  if (format == Format::BFloat16) return visit(bfloat16());
  if (format == Format::Float16) return visit(float16());
  return visit(float());
}

/// Two elements of a half type in a word, as they lie in memory: the first one in its lower half.
template <class Half>
FUSED_OPTIM_INLINE uint32_t to_storage_pair(float first, float second) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t pair;
  if constexpr (std::is_same_v<Half, bfloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
  return pair;
#else
  return to_storage<Half>(first).bits | static_cast<uint32_t>(to_storage<Half>(second).bits) << 16;
#endif
}

}  // namespace fused_optim
