// The formats of a tensor's operands, for kernels: one of all operands, or one of each.
#pragma once

#include "cuda/access.h"
#include "step/table.h"

namespace fused_optim::cuda {

/// All operands have the same, which the kernel is compiled for.
template <class Storage>
struct UniformFormats {
  using T = opmath_t<Storage>;
  static constexpr KernelKind kKind = KernelKind::Uniform;
  static constexpr bool kHasPacks = true;
  static constexpr int kPack = kPackSize<Storage>;     // elements that are loaded together
  static constexpr int kTogether = kEncoded<Storage>;  // and encoded
  static constexpr int kLargestItem = sizeof(Storage);

  FUSED_OPTIM_INLINE explicit UniformFormats(uint64_t /*formats*/) {}

  FUSED_OPTIM_INLINE int64_t size(int /*operand*/) const { return sizeof(Storage); }

  /// A pack from an address at a multiple of its size, and from any.
  FUSED_OPTIM_INLINE Pack load_pack(const char* from, int /*operand*/) const { return load(from); }
  FUSED_OPTIM_INLINE Pack load_pack_unaligned(const char* from, int /*operand*/) const {
    return load_elements(reinterpret_cast<const Storage*>(from));
  }
  FUSED_OPTIM_INLINE void store_pack(char* to, int /*operand*/, const Pack& pack) const {
    store(to, pack);
  }
  FUSED_OPTIM_INLINE void store_pack_unaligned(char* to, int /*operand*/, const Pack& pack) const {
    store_elements(reinterpret_cast<Storage*>(to), pack);
  }

  FUSED_OPTIM_INLINE T decode_at(const Pack& pack, int /*operand*/, int element) const {
    return decode<Storage>(pack, element);
  }
  FUSED_OPTIM_INLINE void encode_at(Pack& pack, int /*operand*/, int first,
                                    const T (&values)[kTogether]) const {
    encode<Storage>(pack, first, values);
  }

  FUSED_OPTIM_INLINE T load_element(const char* from, int /*operand*/) const {
    return to_opmath(*reinterpret_cast<const Storage*>(from));
  }
  FUSED_OPTIM_INLINE void store_element(char* to, int /*operand*/, T value) const {
    *reinterpret_cast<Storage*>(to) = to_storage<Storage>(value);
  }
};

/// Each operand has its own, which the table says. Every thread of a launch takes the same branches
/// for a tensor. A pack is as many elements as 16 bytes of T hold, in as many bytes as they take.
template <class ComputeType>
struct MixedFormats {
  using T = ComputeType;
  static constexpr KernelKind kKind = KernelKind::Mixed;
  /// In double there are few registers: such tensors, which are rare, go element by element.
  static constexpr bool kHasPacks = sizeof(T) == sizeof(float);
  static constexpr int kPack = 16 / sizeof(T);
  static constexpr int kTogether = 2;
  static constexpr int kLargestItem = sizeof(T);

  FUSED_OPTIM_INLINE explicit MixedFormats(uint64_t formats) : formats_(formats) {}

  FUSED_OPTIM_INLINE Format of(int operand) const {
    return static_cast<Format>((formats_ >> (8 * operand)) & 0xffu);
  }
  FUSED_OPTIM_INLINE int64_t size(int operand) const { return item_size(of(operand)); }

  FUSED_OPTIM_INLINE Pack load_pack(const char* from, int operand) const {
    const int64_t bytes = kPack * size(operand);
    Pack pack{};
    if (bytes == 16)
      pack = load(from);
    else if (bytes == 8)
      load_words<2>(from, pack);
    else
      load_words<1>(from, pack);
    return pack;
  }
  FUSED_OPTIM_INLINE void store_pack(char* to, int operand, const Pack& pack) const {
    const int64_t bytes = kPack * size(operand);
    if (bytes == 16)
      store(to, pack);
    else if (bytes == 8)
      store_words<2>(to, pack);
    else
      store_words<1>(to, pack);
  }
  FUSED_OPTIM_INLINE Pack load_pack_unaligned(const char* from, int operand) const {
    Pack pack{};
    with_format(operand, [&]<class Storage>(Storage) {
      FUSED_OPTIM_UNROLL
      for (int i = 0; i < kPack; ++i) put(pack, i, reinterpret_cast<const Storage*>(from)[i]);
    });
    return pack;
  }
  FUSED_OPTIM_INLINE void store_pack_unaligned(char* to, int operand, const Pack& pack) const {
    with_format(operand, [&]<class Storage>(Storage) {
      FUSED_OPTIM_UNROLL
      for (int i = 0; i < kPack; ++i)
        reinterpret_cast<Storage*>(to)[i] = element_of<Storage>(pack, i);
    });
  }

  FUSED_OPTIM_INLINE T decode_at(const Pack& pack, int operand, int element) const {
    T value{};
    with_format(operand, [&]<class Storage>(Storage) {
      value = decoded<T>(element_of<Storage>(pack, element));
    });
    return value;
  }
  FUSED_OPTIM_INLINE void encode_at(Pack& pack, int operand, int first,
                                    const T (&values)[kTogether]) const {
    with_format(operand, [&]<class Storage>(Storage) {
      FUSED_OPTIM_UNROLL
      for (int j = 0; j < kTogether; ++j) put(pack, first + j, encoded<Storage>(values[j]));
    });
  }

  FUSED_OPTIM_INLINE T load_element(const char* from, int operand) const {
    T value{};
    with_format(operand, [&]<class Storage>(Storage) {
      value = decoded<T>(*reinterpret_cast<const Storage*>(from));
    });
    return value;
  }
  FUSED_OPTIM_INLINE void store_element(char* to, int operand, T value) const {
    with_format(operand, [&]<class Storage>(Storage) {
      *reinterpret_cast<Storage*>(to) = encoded<Storage>(value);
    });
  }

 private:
  /// visit(Storage()) for the operand's format, which T computes: double is beside double alone.
  template <class Visit>
  FUSED_OPTIM_INLINE void with_format(int operand, Visit visit) const {
    with_storage(of(operand), [&]<class Storage>(Storage stored) {
      if constexpr (sizeof(opmath_t<Storage>) <= sizeof(T)) visit(stored);
    });
  }

  template <class Storage>
  FUSED_OPTIM_INLINE static void put(Pack& pack, int element, Storage value) {
    if constexpr (kIsHalf<Storage>) {
      const int shift = element % 2 * 16;
      uint32_t& word = pack.words[element / 2];
      word = (word & ~(0xffffu << shift)) | static_cast<uint32_t>(value.bits) << shift;
    } else {
      memcpy(pack.words + element * sizeof(Storage) / 4, &value, sizeof(Storage));
    }
  }

  uint64_t formats_;  // 8 bits of each operand in the order of the table, the average's last
};

/// What a kernel is compiled for: a format of all operands, the type that mixed ones are computed
/// in, or compact ones, which are computed in float.
template <class T>
struct Mixed {};
struct Compact {};

template <class Element>
struct FormatsOf {
  using type = UniformFormats<Element>;
};
template <class T>
struct FormatsOf<Mixed<T>> {
  using type = MixedFormats<T>;
};
template <class Element>
using formats_of_t = typename FormatsOf<Element>::type;

/// visit(Element()) for the kernel of these operands. `format`: the parameter's.
template <class Visit>
auto with_element(KernelKind kind, Format format, Visit visit) {
  if (kind == KernelKind::Compact) return visit(Compact());
  if (kind == KernelKind::Uniform) return with_storage(format, visit);
  return with_storage(format,
                      [&]<class Storage>(Storage) { return visit(Mixed<opmath_t<Storage>>()); });
}

}  // namespace fused_optim::cuda
