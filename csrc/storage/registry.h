// All formats: the one list from which kernels know them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "storage/bfloat16.h"
#include "storage/float16.h"
#include "storage/format.h"

// X(name, type, torch's name)
#define FUSED_OPTIM_FOR_EACH_FORMAT(X) \
  X(Float32, float, "float32")         \
  X(Float64, double, "float64")        \
  X(BFloat16, bfloat16, "bfloat16")    \
  X(Float16, float16, "float16")

namespace fused_optim {

/// A format at run time.
enum class Format : uint8_t {
#define FUSED_OPTIM_NAME(name, Storage, text) name,
  FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_NAME)
#undef FUSED_OPTIM_NAME
};

#define FUSED_OPTIM_TEXT(name, Storage, text) text,
inline constexpr const char* kFormatNames[] = {FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_TEXT)};
#undef FUSED_OPTIM_TEXT

constexpr int kNumFormats = sizeof(kFormatNames) / sizeof(const char*);

constexpr const char* format_name(Format format) {
  return kFormatNames[static_cast<int>(format)];
}

/// Bytes of an element. All sizes lie in one word, four bits each: on GPUs, where kernels of mixed
/// formats ask for each address, a shift is less than a branch.
FUSED_OPTIM_INLINE constexpr int64_t item_size(Format format) {
#define FUSED_OPTIM_SIZE(name, Storage, text) \
  | static_cast<uint32_t>(sizeof(Storage)) << 4 * static_cast<int>(Format::name)
  constexpr uint32_t sizes = 0u FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_SIZE);
#undef FUSED_OPTIM_SIZE
  static_assert(kNumFormats <= 8);
  return (sizes >> 4 * static_cast<int>(format)) & 15u;
}

template <class Storage>
constexpr Format format_of() {
#define FUSED_OPTIM_IS(name, Type, text) \
  if constexpr (std::is_same_v<Storage, Type>) return Format::name;
  FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_IS)
#undef FUSED_OPTIM_IS
}

/// Elements in 16 bytes.
template <class Storage>
constexpr int kPackSize = 16 / sizeof(Storage);

/// visit(Storage()) for the type of this format: the one way from a format at run time to its type.
template <class Visit>
FUSED_OPTIM_INLINE auto with_storage(Format format, Visit visit) {
  switch (format) {
#define FUSED_OPTIM_VISIT(name, Storage, text) \
  case Format::name:                           \
    return visit(Storage());
    FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_VISIT)
#undef FUSED_OPTIM_VISIT
  }
  __builtin_unreachable();
}

}  // namespace fused_optim
