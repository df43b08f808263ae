// The steps of a chunk whose operands hold one number in one place each, by packs of 16 bytes.
#pragma once

#include "cuda/block.h"
#include "cuda/chunk.h"
#include "cuda/entry_scalars.h"
#include "cuda/step_element.h"

namespace fused_optim::cuda {

/// `Element`: a format, or Mixed.
template <class Rule, StateMask states, class Element>
class PackSteps {
 public:
  using Formats = formats_of_t<Element>;
  using T = typename Formats::T;
  using Scalars = EntryScalars<Rule, T>;
  static constexpr int kOperands = kOperandsWith<states>;
  using Operands = Chunk<Formats, kOperands>;

  FUSED_OPTIM_INLINE PackSteps(const TableView& table, Scalars& scalars)
      : table_(table), of_entry_(scalars) {}

  template <class Block>
  FUSED_OPTIM_INLINE void zero_chunk(const Block& block, const Operands& operands) const {
    block.each([&](uint32_t thread) {
      for (uint32_t i = thread; i < operands.num_packs(); i += block.num_threads)
        operands.zero_grad_pack(i);
    });
    block.template each_of<Single>(
        first_single(operands), operands.count(), [&](uint32_t i, Single& single) {
          operands.locate(i, single.elements);
          operands.formats().store_element(single.elements[kGrad], kGrad, T(0));
        });
  }

  template <class Block>
  FUSED_OPTIM_INLINE void step_chunk(const Block& block, const EntryView& entry,
                                     const Operands& operands) {
    step_packs(block, entry, operands);
    block.template each_of<Single>(
        first_single(operands), operands.count(),
        [&](uint32_t i, Single& single) { step_single(operands, i, single); },
        [&](uint32_t, const Single& single) { store_single(operands, single); });
  }

 private:
  static constexpr int kAverageOperand = Operands::kAverageOperand;
  static constexpr int kUnroll = Operands::kUnroll;
  static constexpr int kPack = Formats::kPack, kTogether = Formats::kTogether;

  /// 16 bytes at a time: all loads of kUnroll packs, then the arithmetic, then the stores. The
  /// chunk's scalars are computed while its first loads are under way. All threads go through the
  /// loop equally often, at least once, as they wait for one another there.
  template <class Block>
  FUSED_OPTIM_INLINE void step_packs(const Block& block, const EntryView& entry,
                                     const Operands& operands) {
    const uint32_t packs = operands.num_packs();
    uint32_t first = 0;
    do {
      typename Block::template Local<typename Operands::Packs> loaded(block);
      block.each([&](uint32_t thread) {
        operands.load_packs(first + thread, block.num_threads, loaded[thread]);
      });
      if (first == 0) {
        of_entry_.prepare(block, table_, entry);
        scalars_ = of_entry_.values;
      }
      block.template each_up_to<kUnroll>(
          first, packs,
          [&](uint32_t thread, uint32_t, int n) {
            step_pack(operands.formats(), loaded[thread].packs[n], operands.is_averaged());
          },
          [&](uint32_t thread, uint32_t i, int n) {
            operands.store_pack(i, loaded[thread].packs[n]);
          });
      first += kUnroll * block.num_threads;
    } while (first < packs);
  }

  /// The elements that are in no pack follow the last one: all of strided operands.
  FUSED_OPTIM_INLINE static uint32_t first_single(const Operands& operands) {
    return operands.num_packs() * kPack;
  }

  struct Single {
    char* elements[kOperands + 1];
    T values[kOperands];
  };

  FUSED_OPTIM_INLINE void step_single(const Operands& operands, uint32_t i, Single& single) const {
    operands.locate(i, single.elements);
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k)
      single.values[k] = operands.formats().load_element(single.elements[k], k);
    step_element<Rule, states>(single.values, scalars_);
  }

  FUSED_OPTIM_INLINE void store_single(const Operands& operands, const Single& single) const {
    const Formats& formats = operands.formats();
    char* const(&elements)[kOperands + 1] = single.elements;
    FUSED_OPTIM_UNROLL
    for (int k = kParam; k < kOperands; ++k)
      if (k != kGrad) formats.store_element(elements[k], k, single.values[k]);
    if (operands.is_zeroed()) formats.store_element(elements[kGrad], kGrad, T(0));
    if (!operands.is_averaged()) return;
    const T average = formats.load_element(elements[kAverageOperand], kAverageOperand);
    const T param = formats.load_element(elements[kParam], kParam);
    formats.store_element(elements[kAverageOperand], kAverageOperand, averaged(average, param));
  }

  FUSED_OPTIM_INLINE void step_pack(const Formats& formats, Pack (&packs)[kOperands + 1],
                                    bool is_averaged) const {
    FUSED_OPTIM_UNROLL
    for (int v = 0; v < kPack; v += kTogether) {
      T values[kTogether][kOperands], encoded[kTogether];
      FUSED_OPTIM_UNROLL
      for (int j = 0; j < kTogether; ++j) {
        FUSED_OPTIM_UNROLL
        for (int k = kParam; k < kOperands; ++k)
          values[j][k] = formats.decode_at(packs[k], k, v + j);
        step_element<Rule, states>(values[j], scalars_);
      }
      FUSED_OPTIM_UNROLL
      for (int k = kParam; k < kOperands; ++k) {
        if (k == kGrad) continue;
        FUSED_OPTIM_UNROLL
        for (int j = 0; j < kTogether; ++j) encoded[j] = values[j][k];
        formats.encode_at(packs[k], k, v, encoded);
      }
    }
    if (is_averaged) average_pack(formats, packs[kAverageOperand], packs[kParam]);
  }

  FUSED_OPTIM_INLINE void average_pack(const Formats& formats, Pack& average,
                                       const Pack& param) const {
    FUSED_OPTIM_UNROLL
    for (int v = 0; v < kPack; v += kTogether) {
      T encoded[kTogether];
      FUSED_OPTIM_UNROLL
      for (int j = 0; j < kTogether; ++j)
        encoded[j] = averaged(formats.decode_at(average, kAverageOperand, v + j),
                              formats.decode_at(param, kParam, v + j));
      formats.encode_at(average, kAverageOperand, v, encoded);
    }
  }

  /// The average moves towards the parameter as it is stored.
  FUSED_OPTIM_INLINE T averaged(T average, T param) const {
    return lerp(average, param, scalars_.ema_weight);
  }

  const TableView table_;
  Scalars& of_entry_;
  typename Scalars::Values scalars_{};  // of_entry_'s, in registers
};

}  // namespace fused_optim::cuda
