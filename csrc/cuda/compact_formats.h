// Elements of compact formats in registers: a few neighbours of each operand as they are stored,
// decoded where they are computed with.
#pragma once

#include "cuda/access.h"
#include "cuda/formats.h"
#include "step/operands.h"
#include "step/table.h"

namespace fused_optim::cuda {

/// One or several elements of an operand as they are stored. Remainders are beside what takes half
/// of the words.
template <int kElements>
struct StoredElements {
  static constexpr int kRemainders = (kElements + 1) / 2;  // their first word

  Pack packs[(kElements + 3) / 4];
  float scale;  // of the block that they are in

  FUSED_OPTIM_INLINE uint32_t& word(int i) { return packs[i / 4].words[i % 4]; }
  FUSED_OPTIM_INLINE uint32_t word(int i) const { return packs[i / 4].words[i % 4]; }

  /// Element i of those that begin in word `first`.
  template <class Stored>
  FUSED_OPTIM_INLINE Stored at(int i, int first = 0) const {
    constexpr int kInWord = 4 / sizeof(Stored), kBits = 8 * sizeof(Stored);
    return bits_as<Stored>(
        static_cast<bits_t<Stored>>(word(first + i / kInWord) >> (i % kInWord * kBits)));
  }
  /// Puts an element where there was zero.
  template <class Stored>
  FUSED_OPTIM_INLINE void put(int i, Stored value, int first = 0) {
    constexpr int kInWord = 4 / sizeof(Stored), kBits = 8 * sizeof(Stored);
    const uint32_t bits = bits_as<bits_t<Stored>>(value);
    word(first + i / kInWord) |= bits << (i % kInWord * kBits);
  }

 private:
  template <class Stored>
  using bits_t = std::conditional_t<sizeof(Stored) == 4, uint32_t,
                                    std::conditional_t<sizeof(Stored) == 2, uint16_t, uint8_t>>;
};

/// How one operand is rounded when it is stored.
struct Rounding {
  bool is_stochastic;
  RandomBits random;
  uint32_t index;    // of the first element
  uint32_t largest;  // bits of the block's largest magnitude

  FUSED_OPTIM_INLINE uint32_t bits(int element) const {
    return random.at(index + static_cast<uint32_t>(element));
  }
};

/// Each operand has its own, which the table says; every thread of a launch takes the same branches
/// for a tensor. Which ones there are is known in part: the parameter alone has a master, codes are
/// what the moment asks for. Bits of operands in the order of the table: `kSigned` and `kUnsigned`
/// of those that may be in such codes.
template <unsigned kSigned, unsigned kUnsigned>
struct CompactFormats {
  using T = float;
  static constexpr KernelKind kKind = KernelKind::Compact;
  static constexpr int kLargestItem = sizeof(float);
  static constexpr unsigned kCoded = kSigned | kUnsigned;

  FUSED_OPTIM_INLINE explicit CompactFormats(uint64_t formats) : formats_(formats) {}

  FUSED_OPTIM_INLINE Format of(int operand) const {
    return static_cast<Format>((formats_ >> (8 * operand)) & 0xffu);
  }
  FUSED_OPTIM_INLINE int64_t size(int operand) const { return item_size(of(operand)); }
  FUSED_OPTIM_INLINE bool is_coded(int operand) const {
    return ((kCoded >> operand) & 1u) && is_compact(of(operand));
  }
  /// Bytes of an element's remainder; 0: it has none.
  FUSED_OPTIM_INLINE int64_t remainder_size(int operand) const {
    if (operand != kParam || !is_compact(of(operand))) return 0;
    return of(operand) == Format::Master32 ? 2 : 1;
  }

  template <int kElements>
  FUSED_OPTIM_INLINE void decode(int operand, const StoredElements<kElements>& stored,
                                 float (&values)[kElements]) const {
    const auto number = [&]<class Storage>(Storage) {
      for_each<kElements>([&](int i) { values[i] = to_opmath(stored.template at<Storage>(i)); });
    };
    const auto master = [&]<class Master>(Master) {
      for_each<kElements>([&](int i) {
        values[i] = join<Master>(stored.template at<bfloat16>(i),
                                 stored.template at<typename Master::Remainder>(
                                     i, StoredElements<kElements>::kRemainders));
      });
    };
    const auto codes = [&]<class Codes>(Codes) {
      for_each<kElements>([&](int i) {
        values[i] = Codes::decode(stored.template at<typename Codes::Code>(i), stored.scale);
      });
    };
    with_format(operand, number, master, codes);
  }

  template <int kElements>
  FUSED_OPTIM_INLINE void encode(int operand, const float (&values)[kElements],
                                 const Rounding& rounding,
                                 StoredElements<kElements>& stored) const {
    stored = {};
    const auto number = [&]<class Storage>(Storage) {
      encode_numbers<Storage>(values, rounding, stored);
    };
    const auto master = [&]<class Master>(Master) {
      encode_masters<Master>(values, rounding, stored);
    };
    const auto codes = [&]<class Codes>(Codes) {
      stored.scale = Codes::scale_of(rounding.largest);
      const float factor = Codes::factor_of(stored.scale);
      for_each<kElements>(
          [&](int i) { stored.put(i, Codes::encode(values[i], factor, rounding.bits(i))); });
    };
    with_format(operand, number, master, codes);
  }

 private:
  template <int kCount, class Visit>
  FUSED_OPTIM_INLINE static void for_each(Visit visit) {
    FUSED_OPTIM_UNROLL
    for (int i = 0; i < kCount; ++i) visit(i);
  }

  template <class Storage, int kElements>
  FUSED_OPTIM_INLINE static void encode_numbers(const float (&values)[kElements],
                                                const Rounding& rounding,
                                                StoredElements<kElements>& stored) {
    if constexpr (std::is_same_v<Storage, bfloat16>) {
      if (rounding.is_stochastic) {
        for_each<kElements>(
            [&](int i) { stored.put(i, to_bfloat16(values[i], rounding.bits(i))); });
        return;
      }
    }
    if constexpr (kIsHalf<Storage> && kElements > 1)
      for_each<kElements / 2>([&](int i) {
        stored.word(i) = to_storage_pair<Storage>(values[2 * i], values[2 * i + 1]);
      });
    else
      for_each<kElements>([&](int i) { stored.put(i, to_storage<Storage>(values[i])); });
  }

  template <class Master, int kElements>
  FUSED_OPTIM_INLINE static void encode_masters(const float (&values)[kElements],
                                                const Rounding& rounding,
                                                StoredElements<kElements>& stored) {
    const auto put = [&](int i, uint32_t kept) {
      stored.put(i, master_param<Master>(kept));
      stored.put(i, master_remainder<Master>(kept), StoredElements<kElements>::kRemainders);
    };
    if (rounding.is_stochastic && Master::kShift > 0)
      for_each<kElements>([&](int i) { put(i, kept_bits<Master>(values[i], rounding.bits(i))); });
    else
      for_each<kElements>([&](int i) { put(i, kept_bits<Master>(values[i])); });
  }

  /// number(Storage()), master(Master()) or codes(Codes()) for the operand's format.
  template <class Number, class VisitMaster, class VisitCodes>
  FUSED_OPTIM_INLINE void with_format(int operand, Number number, VisitMaster master,
                                      VisitCodes codes) const {
    const Format format = of(operand);
    if (operand == kParam && is_compact(format)) {
      if (format == Format::Master32)
        master(Master32());
      else
        master(Master24());
    } else if (((kSigned >> operand) & 1u) && is_compact(format)) {
      codes(SignedCodes());
    } else if (((kUnsigned >> operand) & 1u) && is_compact(format)) {
      codes(UnsignedCodes());
    } else if (format == Format::Float32) {
      number(float());
    } else if (format == Format::BFloat16) {
      number(bfloat16());
    } else {
      number(float16());
    }
  }

  uint64_t formats_;  // 8 bits of each operand in the order of the table, the average's last
};

}  // namespace fused_optim::cuda
