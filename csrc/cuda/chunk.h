// A chunk of an entry: where its operands' elements lie, and how they get into registers and back.
#pragma once

#include "cuda/formats.h"
#include "cuda/kernel_table.h"
#include "step/table.h"

namespace fused_optim::cuda {

/// Packs of each operand that a thread has in flight at a time. One is enough of five operands, as
/// two are of two; and double, which takes twice the registers to compute with, leaves room for no
/// more.
template <class Formats, int kOperands>
constexpr int kPacksInFlight = Formats::kLargestItem == 8 && kOperands > 4 ? 1 : 2;

/// `Formats`: UniformFormats, MixedFormats or CompactFormats.
template <class Formats, int kOperands>
class Chunk {
 public:
  static constexpr int kAverageOperand = kOperands;
  static constexpr int kUnroll = kPacksInFlight<Formats, kOperands>;

  /// kUnroll packs of each operand, the average's last.
  struct Packs {
    Pack packs[kUnroll][kOperands + 1];
  };

  /// `number`: among the chunks of the entry.
  FUSED_OPTIM_INLINE Chunk(const TableView& table, const EntryView& entry, const Formats& formats,
                           int one_element_states, uint32_t number)
      : formats_(formats), table_(table), entry_(entry), number_(number) {
    const int64_t rest = entry.numel() - begin();
    count_ = static_cast<uint32_t>(rest < kChunk ? rest : kChunk);
    const int64_t first = is_strided() ? 0 : begin();
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k)
      data_[k] = static_cast<char*>(entry.operand(k)) + first * formats.size(k);
    data_[kAverageOperand] = is_averaged() ? static_cast<char*>(entry.average(one_element_states)) +
                                                 first * formats.size(kAverageOperand)
                                           : nullptr;
  }

  FUSED_OPTIM_INLINE const Formats& formats() const { return formats_; }
  FUSED_OPTIM_INLINE bool is_zeroed() const { return table_.head.zeroes_grads(); }
  FUSED_OPTIM_INLINE bool is_averaged() const { return table_.head.has_averages(); }
  FUSED_OPTIM_INLINE uint32_t count() const { return count_; }

  /// Packs that it has whole. Strided operands have none: they go element by element.
  FUSED_OPTIM_INLINE uint32_t num_packs() const {
    return is_strided() || !Formats::kHasPacks ? 0 : count_ / Formats::kPack;
  }

  /// Issues the loads of packs i, i + stride, ..., all of them before any value is used. What is
  /// beyond the chunk is not loaded.
  FUSED_OPTIM_INLINE void load_packs(uint32_t i, uint32_t stride, Packs& loaded) const {
    if constexpr (!Formats::kHasPacks) return;
    if (entry_.unaligned() == 0)
      load_each(i, stride, loaded,
                [&](const char* from, int operand) { return formats_.load_pack(from, operand); });
    else
      load_each(i, stride, loaded, [&](const char* from, int operand) {
        return is_unaligned(operand) ? formats_.load_pack_unaligned(from, operand)
                                     : formats_.load_pack(from, operand);
      });
  }

  /// Stores what a step changes of pack i, which is `packs`.
  FUSED_OPTIM_INLINE void store_pack(uint32_t i, const Pack (&packs)[kOperands + 1]) const {
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k)
      if (k != kGrad) store_operand(k, i, packs[k]);
    if (is_zeroed()) store_operand(kGrad, i, Pack{});
    if (is_averaged()) store_operand(kAverageOperand, i, packs[kAverageOperand]);
  }

  FUSED_OPTIM_INLINE void zero_grad_pack(uint32_t i) const { store_operand(kGrad, i, Pack{}); }

  /// Where the operands' elements of this number in the chunk lie.
  FUSED_OPTIM_INLINE void locate(uint32_t i, char* (&elements)[kOperands + 1]) const {
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k <= kAverageOperand; ++k) elements[k] = data_[k];
    if (!is_strided())
      advance(elements, [&](int) { return int64_t{i}; });
    else if (entry_.numel() <= int64_t{~0u})
      locate_strided(static_cast<uint32_t>(begin()) + i, elements);
    else
      locate_strided(static_cast<uint64_t>(begin()) + i, elements);
  }

 private:
  FUSED_OPTIM_INLINE int64_t begin() const { return number_ * kChunk; }
  FUSED_OPTIM_INLINE bool is_strided() const { return entry_.layout() != 0; }
  FUSED_OPTIM_INLINE bool is_unaligned(int operand) const {
    return (entry_.unaligned() >> operand) & 1u;
  }

  FUSED_OPTIM_INLINE char* pack_at(int operand, uint32_t i) const {
    return data_[operand] + i * (Formats::kPack * formats_.size(operand));
  }

  template <class Load>
  FUSED_OPTIM_INLINE void load_each(uint32_t i, uint32_t stride, Packs& loaded, Load load) const {
    FUSED_OPTIM_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t at = i + u * stride;
      const bool inside = at < num_packs();
      FUSED_OPTIM_UNROLL
      for (int k = kParam; k < kOperands; ++k)
        if (inside) loaded.packs[u][k] = load(pack_at(k, at), k);
      if (inside && is_averaged())
        loaded.packs[u][kAverageOperand] = load(pack_at(kAverageOperand, at), kAverageOperand);
    }
  }

  FUSED_OPTIM_INLINE void store_operand(int operand, uint32_t i, const Pack& pack) const {
    if (is_unaligned(operand))
      formats_.store_pack_unaligned(pack_at(operand, i), operand, pack);
    else
      formats_.store_pack(pack_at(operand, i), operand, pack);
  }

  /// Moves each operand's address by offset(operand) elements.
  template <class Offset>
  FUSED_OPTIM_INLINE void advance(char* (&elements)[kOperands + 1], Offset offset) const {
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k) elements[k] += offset(k) * formats_.size(k);
    if (is_averaged())
      elements[kAverageOperand] += offset(kAverageOperand) * formats_.size(kAverageOperand);
  }

  template <class Integer>
  FUSED_OPTIM_INLINE void locate_strided(Integer element, char* (&elements)[kOperands + 1]) const {
    const LayoutView layout{table_.words + entry_.layout()};
    layout.for_each_index(element, [&](int dim, int64_t index) {
      advance(elements, [&](int operand) { return index * layout.stride(operand, dim); });
    });
  }

  const Formats formats_;
  char* data_[kOperands + 1];  // of the chunk's first element, strided: of the tensor's
  TableView table_;
  EntryView entry_;
  uint32_t number_, count_;
};

}  // namespace fused_optim::cuda
