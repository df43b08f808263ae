// All formats: the one list from which kernels know them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "storage/bfloat16.h"
#include "storage/float16.h"
#include "storage/format.h"
#include "storage/moment_codes.h"
#include "storage/split_master.h"

// Of one number in one place. X(name, type, torch's name)
#define FUSED_OPTIM_FOR_EACH_FORMAT(X) \
  X(Float32, float, "float32")         \
  X(Float64, double, "float64")        \
  X(BFloat16, bfloat16, "bfloat16")    \
  X(Float16, float16, "float16")

// Of numbers with a part beside the tensor: masters' remainders, blocks' scales. Computed in float.
// X(name, type, what lies in the tensor, name for errors)
#define FUSED_OPTIM_FOR_EACH_COMPACT_FORMAT(X)                 \
  X(Master32, Master32, bfloat16, "bfloat16 and 16 more bits") \
  X(Master24, Master24, bfloat16, "bfloat16 and 8 more bits")  \
  X(SignedCodes, SignedCodes, int8_t, "8 bits, signed")        \
  X(UnsignedCodes, UnsignedCodes, uint8_t, "8 bits, unsigned")

namespace fused_optim {

/// A format at run time.
enum class Format : uint8_t {
#define FUSED_OPTIM_NAME(name, Storage, text) name,
  FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_NAME)
#undef FUSED_OPTIM_NAME
#define FUSED_OPTIM_NAME(name, Type, Storage, text) name,
      FUSED_OPTIM_FOR_EACH_COMPACT_FORMAT(FUSED_OPTIM_NAME)
#undef FUSED_OPTIM_NAME
};

#define FUSED_OPTIM_ONE(name, ...) +1
/// Formats of one number in one place, which come first.
constexpr int kNumFormats = 0 FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_ONE);
constexpr int kNumAllFormats = kNumFormats FUSED_OPTIM_FOR_EACH_COMPACT_FORMAT(FUSED_OPTIM_ONE);
#undef FUSED_OPTIM_ONE

#define FUSED_OPTIM_TEXT(name, Storage, text) text,
#define FUSED_OPTIM_COMPACT_TEXT(name, Type, Storage, text) text,
inline constexpr const char* kFormatNames[] = {FUSED_OPTIM_FOR_EACH_FORMAT(
    FUSED_OPTIM_TEXT) FUSED_OPTIM_FOR_EACH_COMPACT_FORMAT(FUSED_OPTIM_COMPACT_TEXT)};
#undef FUSED_OPTIM_COMPACT_TEXT
#undef FUSED_OPTIM_TEXT

constexpr bool is_compact(Format format) {
  return static_cast<int>(format) >= kNumFormats;
}

constexpr const char* format_name(Format format) {
  return kFormatNames[static_cast<int>(format)];
}

/// Bytes of an element in its tensor. All sizes lie in one word, four bits each: on GPUs, where
/// kernels of mixed formats ask for each address, a shift is less than a branch.
FUSED_OPTIM_INLINE constexpr int64_t item_size(Format format) {
#define FUSED_OPTIM_SIZE(name, Storage, text) \
  | static_cast<uint32_t>(sizeof(Storage)) << 4 * static_cast<int>(Format::name)
#define FUSED_OPTIM_COMPACT_SIZE(name, Type, Storage, text) FUSED_OPTIM_SIZE(name, Storage, text)
  constexpr uint32_t sizes = 0u FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_SIZE)
      FUSED_OPTIM_FOR_EACH_COMPACT_FORMAT(FUSED_OPTIM_COMPACT_SIZE);
#undef FUSED_OPTIM_COMPACT_SIZE
#undef FUSED_OPTIM_SIZE
  static_assert(kNumAllFormats <= 8);
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

/// visit(Storage()) for the type of this format, which is of one number in one place: the one way
/// from a format at run time to its type.
template <class Visit>
FUSED_OPTIM_INLINE auto with_storage(Format format, Visit visit) {
  switch (format) {
#define FUSED_OPTIM_VISIT(name, Storage, text) \
  case Format::name:                           \
    return visit(Storage());
    FUSED_OPTIM_FOR_EACH_FORMAT(FUSED_OPTIM_VISIT)
#undef FUSED_OPTIM_VISIT
    default:
      break;
  }
  __builtin_unreachable();
}

namespace detail {

template <class Type, class VisitMaster, class VisitCodes>
FUSED_OPTIM_INLINE void visit_compact(VisitMaster& master, VisitCodes& codes) {
  if constexpr (requires { typename Type::Remainder; })
    master(Type());
  else
    codes(Type());
}

}  // namespace detail

/// master(Type()) or codes(Type()) for the type of this compact format.
template <class VisitMaster, class VisitCodes>
FUSED_OPTIM_INLINE void with_compact(Format format, VisitMaster master, VisitCodes codes) {
  switch (format) {
#define FUSED_OPTIM_VISIT(name, Type, Storage, text) \
  case Format::name:                                 \
    return detail::visit_compact<Type>(master, codes);
    FUSED_OPTIM_FOR_EACH_COMPACT_FORMAT(FUSED_OPTIM_VISIT)
#undef FUSED_OPTIM_VISIT
    default:
      break;
  }
  __builtin_unreachable();
}

}  // namespace fused_optim
