// A launch's gradients as the norm's and the scaling kernel read them: one argument, of the sizes
// that kernel_table.h has.
#pragma once

#include <cstdint>

#include "base/platform.h"
#include "cuda/find_by_chunk.h"
#include "reduce/norm.h"

namespace fused_optim::cuda {

struct GradientView {
  void* data;
  int64_t numel;
  uint32_t first_chunk;  // among the chunks of all gradients
  uint32_t chunk_end;    // in this launch: chunks up to its end
};

/// A chunk: these elements of a tensor, and its number among the chunks of all gradients.
struct GradientChunk {
  void* data;  // the tensor's
  int64_t begin, count;
  uint32_t number;

  template <class Storage>
  FUSED_OPTIM_INLINE Storage* elements() const {
    return static_cast<Storage*>(data) + begin;
  }
};

struct GradientTableHead {
  double* sums;        // of each chunk, where sums are taken
  const double* norm;  // where gradients are scaled
  double max_norm;
  uint32_t num_entries;
  uint32_t num_chunks;
};

template <int kNumEntries>
struct GradientTableOf {
  static constexpr int kItems = kNumEntries;

  GradientTableHead head;
  GradientView entries[kItems];

  GradientView* items() { return entries; }
};

using GradientTable = GradientTableOf<1360>;
static_assert(sizeof(GradientTable) <= 32764, "the limit of kernel arguments since CUDA 12.1");
using SmallGradientTable = GradientTableOf<169>;
static_assert(sizeof(SmallGradientTable) <= 4096, "the limit of kernel arguments before CUDA 12.1");

/// A table of any size.
struct GradientTableView {
  const GradientTableHead& head;
  const GradientView* entries;

  FUSED_OPTIM_INLINE GradientTableView(const GradientTableHead& table_head,
                                       const GradientView* table_entries)
      : head(table_head), entries(table_entries) {}

  template <int kEntries>
  FUSED_OPTIM_INLINE explicit GradientTableView(const GradientTableOf<kEntries>& table)
      : GradientTableView(table.head, table.entries) {}

  FUSED_OPTIM_INLINE GradientChunk at(uint32_t chunk) const {
    const uint32_t index =
        find_by_chunk(head.num_entries, chunk, [&](uint32_t i) { return entries[i].chunk_end; });
    const GradientView& gradient = entries[index];
    const uint32_t in_tensor = chunk - (index == 0 ? 0 : entries[index - 1].chunk_end);
    const int64_t begin = in_tensor * kNormChunk, rest = gradient.numel - begin;
    return {gradient.data, begin, rest < kNormChunk ? rest : kNormChunk,
            gradient.first_chunk + in_tensor};
  }
};

}  // namespace fused_optim::cuda
