// A chunk of a compact entry: how its elements get into registers and back.
#pragma once

#include "cuda/chunk.h"
#include "cuda/compact_formats.h"

namespace fused_optim::cuda {

/// Whole blocks go by groups of kGroup neighbours of each operand, in accesses of 16 bytes, or 8
/// for as many codes. The last block of a tensor goes element by element, and so do all where an
/// operand is strided or unaligned.
template <class Formats, int kOperands>
class CompactChunk {
 public:
  static constexpr int kAverageOperand = kOperands;
  static constexpr int kGroup = 8;
  /// Where elements lie that are in no group.
  using Elements = Chunk<Formats, kOperands>;

  template <int kElements>
  struct Stored {
    StoredElements<kElements> operands[kOperands + 1];  // the average's last
  };

  FUSED_OPTIM_INLINE CompactChunk(const TableView& table, const EntryView& entry,
                                  const Formats& formats, int one_element_states, uint32_t number)
      : table_(table),
        entry_(entry),
        formats_(formats),
        one_element_states_(one_element_states),
        number_(number) {}

  FUSED_OPTIM_INLINE const Formats& formats() const { return formats_; }
  FUSED_OPTIM_INLINE bool is_averaged() const { return table_.head.has_averages(); }
  FUSED_OPTIM_INLINE CompactView compact() const {
    return entry_.compact(one_element_states_, is_averaged());
  }
  FUSED_OPTIM_INLINE Elements elements() const {
    return Elements(table_, entry_, formats_, one_element_states_, number_);
  }
  FUSED_OPTIM_INLINE uint32_t count() const {
    const int64_t rest = entry_.numel() - begin();
    return static_cast<uint32_t>(rest < kChunk ? rest : kChunk);
  }

  /// The elements that go by groups.
  FUSED_OPTIM_INLINE uint32_t num_grouped() const {
    return entry_.layout() != 0 || entry_.unaligned() != 0
               ? 0
               : count() / static_cast<uint32_t>(kBlock) * static_cast<uint32_t>(kBlock);
  }

  /// An element's number for random bits.
  FUSED_OPTIM_INLINE uint32_t index_of(uint32_t i) const {
    return compact().first_index() + static_cast<uint32_t>(begin()) + i;
  }

  /// Issues the loads of the group that begins with element i.
  FUSED_OPTIM_INLINE void load(uint32_t i, Stored<kGroup>& stored) const {
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k <= kAverageOperand; ++k) {
      if (k == kAverageOperand && !is_averaged()) continue;
      StoredElements<kGroup>& operand = stored.operands[k];
      load_words<0>(address(k, i), kGroup * size(k), operand);
      if (const int64_t bytes = formats().remainder_size(k); bytes != 0)
        load_words<kGroup / 2>(compact().side(k) + offset(i, bytes), kGroup * bytes, operand);
      if (formats().is_coded(k)) operand.scale = *scale_at(k, i);
    }
  }

  FUSED_OPTIM_INLINE void store(uint32_t i, const Stored<kGroup>& stored) const {
    for_each_stored([&](int k) {
      const StoredElements<kGroup> zero{};
      const StoredElements<kGroup>& operand = k == kGrad ? zero : stored.operands[k];
      store_words<0>(address(k, i), kGroup * size(k), operand);
      if (const int64_t bytes = formats().remainder_size(k); bytes != 0)
        store_words<kGroup / 2>(compact().side(k) + offset(i, bytes), kGroup * bytes, operand);
      store_scale(k, i, operand.scale);
    });
  }

  /// The same for one element of any operands, but for the scales.
  FUSED_OPTIM_INLINE void load(const Elements& all, uint32_t i, Stored<1>& stored) const {
    char* elements[kOperands + 1];
    all.locate(i, elements);
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k <= kAverageOperand; ++k) {
      if (k == kAverageOperand && !is_averaged()) continue;
      StoredElements<1>& operand = stored.operands[k];
      operand.packs[0] = {};
      load_element(elements[k], size(k), 0, operand);
      if (const int64_t bytes = formats().remainder_size(k); bytes != 0)
        load_element(compact().side(k) + offset(i, bytes), bytes, operand.kRemainders, operand);
    }
  }

  FUSED_OPTIM_INLINE void load_scales(uint32_t i, Stored<1>& stored) const {
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k)
      if (formats().is_coded(k)) stored.operands[k].scale = *scale_at(k, i);
  }

  FUSED_OPTIM_INLINE void store(const Elements& all, uint32_t i, const Stored<1>& stored) const {
    char* elements[kOperands + 1];
    all.locate(i, elements);
    for_each_stored([&](int k) {
      const StoredElements<1> zero{};
      const StoredElements<1>& operand = k == kGrad ? zero : stored.operands[k];
      store_element(elements[k], size(k), 0, operand);
      if (const int64_t bytes = formats().remainder_size(k); bytes != 0)
        store_element(compact().side(k) + offset(i, bytes), bytes, operand.kRemainders, operand);
      store_scale(k, i, operand.scale);
    });
  }

  FUSED_OPTIM_INLINE void zero_grad(const Elements& all, uint32_t i) const {
    char* elements[kOperands + 1];
    all.locate(i, elements);
    store_element(elements[kGrad], size(kGrad), 0, StoredElements<1>{});
  }

 private:
  FUSED_OPTIM_INLINE int64_t begin() const { return number_ * kChunk; }
  FUSED_OPTIM_INLINE int64_t size(int operand) const { return formats().size(operand); }
  FUSED_OPTIM_INLINE int64_t offset(uint32_t i, int64_t bytes) const {
    return (begin() + i) * bytes;
  }

  FUSED_OPTIM_INLINE char* address(int operand, uint32_t i) const {
    void* first =
        operand == kAverageOperand ? entry_.average(one_element_states_) : entry_.operand(operand);
    return static_cast<char*>(first) + offset(i, size(operand));
  }

  /// Calls visit(operand) for all that a step changes.
  template <class Visit>
  FUSED_OPTIM_INLINE void for_each_stored(Visit visit) const {
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k)
      if (k != kGrad || table_.head.zeroes_grads()) visit(k);
    if (is_averaged()) visit(kAverageOperand);
  }

  FUSED_OPTIM_INLINE float* scale_at(int operand, uint32_t i) const {
    return reinterpret_cast<float*>(compact().side(operand)) + (begin() + i) / kBlock;
  }
  /// By the thread that has the block's first element.
  FUSED_OPTIM_INLINE void store_scale(int operand, uint32_t i, float scale) const {
    if (formats().is_coded(operand) && i % kBlock == 0) *scale_at(operand, i) = scale;
  }

  /// Words from kFirst on, from and to an address at a multiple of 16.
  template <int kFirst>
  FUSED_OPTIM_INLINE static void load_words(const char* from, int64_t bytes,
                                            StoredElements<kGroup>& stored) {
    if (bytes == 8) return cuda::load_words<2>(from, stored.packs[kFirst / 4]);
    FUSED_OPTIM_UNROLL
    for (int w = kFirst; w < kGroup; w += 4)
      if (4 * (w - kFirst) < bytes) stored.packs[w / 4] = cuda::load(from + 4 * (w - kFirst));
  }
  template <int kFirst>
  FUSED_OPTIM_INLINE static void store_words(char* to, int64_t bytes,
                                             const StoredElements<kGroup>& stored) {
    if (bytes == 8) return cuda::store_words<2>(to, stored.packs[kFirst / 4]);
    FUSED_OPTIM_UNROLL
    for (int w = kFirst; w < kGroup; w += 4)
      if (4 * (w - kFirst) < bytes) cuda::store(to + 4 * (w - kFirst), stored.packs[w / 4]);
  }

  /// An element that begins in word `first`.
  FUSED_OPTIM_INLINE static void load_element(const char* from, int64_t bytes, int first,
                                              StoredElements<1>& stored) {
    with_bits(bytes, [&]<class Bits>(Bits) {
      stored.put(0, *reinterpret_cast<const Bits*>(from), first);
    });
  }
  FUSED_OPTIM_INLINE static void store_element(char* to, int64_t bytes, int first,
                                               const StoredElements<1>& stored) {
    with_bits(bytes, [&]<class Bits>(Bits) {
      *reinterpret_cast<Bits*>(to) = stored.template at<Bits>(0, first);
    });
  }
  template <class Visit>
  FUSED_OPTIM_INLINE static void with_bits(int64_t bytes, Visit visit) {
    if (bytes == 4)
      visit(uint32_t());
    else if (bytes == 2)
      visit(uint16_t());
    else
      visit(uint8_t());
  }

  const TableView table_;
  const EntryView entry_;
  const Formats formats_;
  const int one_element_states_;
  const uint32_t number_;
};

}  // namespace fused_optim::cuda
