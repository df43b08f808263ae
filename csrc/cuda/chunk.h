// A chunk of an entry: where its operands' elements lie, and how they get into registers and back.
#pragma once

#include "cuda/access.h"
#include "cuda/kernel_table.h"
#include "step/table.h"

namespace fused_optim::cuda {

/// Packs of each operand that a thread has in flight at a time. One is enough of five operands, as
/// two are of two; and double, which takes twice the registers to compute with, leaves room for no
/// more.
template <class Storage, int kOperands>
constexpr int kPacksInFlight = sizeof(Storage) == 8 && kOperands > 4 ? 1 : 2;

template <class Storage, int kOperands>
class Chunk {
 public:
  static constexpr int kAverageOperand = kOperands;
  static constexpr int kUnroll = kPacksInFlight<Storage, kOperands>;

  /// kUnroll packs of each operand, the average's last.
  struct Packs {
    Pack packs[kUnroll][kOperands + 1];
  };

  /// `number`: among the chunks of the entry.
  FUSED_OPTIM_INLINE Chunk(const TableView& table, const EntryView& entry, int scalar_states,
                           uint32_t number)
      : table_(table), entry_(entry), number_(number) {
    const int64_t rest = entry.numel() - begin();
    count_ = static_cast<uint32_t>(rest < kChunk ? rest : kChunk);
    const int64_t first = is_strided() ? 0 : begin();
    FUSED_OPTIM_UNROLL
    for (int k = 0; k < kOperands; ++k) data_[k] = static_cast<Storage*>(entry.operand(k)) + first;
    data_[kAverageOperand] =
        is_averaged() ? static_cast<Storage*>(entry.average(scalar_states)) + first : nullptr;
  }

  FUSED_OPTIM_INLINE bool is_zeroed() const { return table_.head.zeroes_grads(); }
  FUSED_OPTIM_INLINE bool is_averaged() const { return table_.head.has_averages(); }
  FUSED_OPTIM_INLINE uint32_t count() const { return count_; }

  /// Packs that it has whole. Strided operands have none: they go element by element.
  FUSED_OPTIM_INLINE uint32_t num_packs() const {
    return is_strided() ? 0 : count_ / kPackSize<Storage>;
  }

  /// Issues the loads of packs i, i + stride, ..., all of them before any value is used. What is
  /// beyond the chunk is not loaded.
  FUSED_OPTIM_INLINE void load_packs(uint32_t i, uint32_t stride, Packs& loaded) const {
    if (entry_.unaligned() == 0)
      load_each(i, stride, loaded, [](Storage* from, int) { return load(from); });
    else
      load_each(i, stride, loaded, [&](Storage* from, int operand) {
        return is_unaligned(operand) ? load_elements(from) : load(from);
      });
  }

  /// Stores what a step changes of pack i, which is `packs`.
  FUSED_OPTIM_INLINE void store_pack(uint32_t i, const Pack (&packs)[kOperands + 1]) const {
    FUSED_OPTIM_UNROLL
    for (int k = 0; k < kOperands; ++k)
      if (k != kGrad) store_operand(k, i, packs[k]);
    if (is_zeroed()) store_operand(kGrad, i, Pack{});
    if (is_averaged()) store_operand(kAverageOperand, i, packs[kAverageOperand]);
  }

  FUSED_OPTIM_INLINE void zero_grad_pack(uint32_t i) const { store_operand(kGrad, i, Pack{}); }

  /// Where the operands' elements of this number in the chunk lie.
  FUSED_OPTIM_INLINE void locate(uint32_t i, Storage* (&elements)[kOperands + 1]) const {
    FUSED_OPTIM_UNROLL
    for (int k = 0; k <= kOperands; ++k) elements[k] = data_[k];
    if (!is_strided())
      advance(elements, [&](int) { return i; });
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

  FUSED_OPTIM_INLINE Storage* pack_at(int operand, uint32_t i) const {
    return data_[operand] + i * kPackSize<Storage>;
  }

  template <class Load>
  FUSED_OPTIM_INLINE void load_each(uint32_t i, uint32_t stride, Packs& loaded, Load load) const {
    FUSED_OPTIM_UNROLL
    for (int u = 0; u < kUnroll; ++u) {
      const uint32_t at = i + u * stride;
      const bool inside = at < num_packs();
      FUSED_OPTIM_UNROLL
      for (int k = 0; k < kOperands; ++k)
        if (inside) loaded.packs[u][k] = load(pack_at(k, at), k);
      if (inside && is_averaged())
        loaded.packs[u][kAverageOperand] = load(pack_at(kAverageOperand, at), kAverageOperand);
    }
  }

  FUSED_OPTIM_INLINE void store_operand(int operand, uint32_t i, const Pack& pack) const {
    if (is_unaligned(operand))
      store_elements(pack_at(operand, i), pack);
    else
      store(pack_at(operand, i), pack);
  }

  /// Moves each operand's address by offset(operand) elements.
  template <class Offset>
  FUSED_OPTIM_INLINE void advance(Storage* (&elements)[kOperands + 1], Offset offset) const {
    FUSED_OPTIM_UNROLL
    for (int k = 0; k < kOperands; ++k) elements[k] += offset(k);
    if (is_averaged()) elements[kAverageOperand] += offset(kAverageOperand);
  }

  template <class Integer>
  FUSED_OPTIM_INLINE void locate_strided(Integer element,
                                         Storage* (&elements)[kOperands + 1]) const {
    const LayoutView layout{table_.words + entry_.layout()};
    layout.for_each_index(element, [&](int dim, int64_t index) {
      advance(elements, [&](int operand) { return index * layout.stride(operand, dim); });
    });
  }

  Storage* data_[kOperands + 1];  // of the chunk's first element, strided: of the tensor's
  TableView table_;
  EntryView entry_;
  uint32_t number_, count_;
};

}  // namespace fused_optim::cuda
