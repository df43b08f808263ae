// What a thread and a block do for norms and scaling: plain C++ that runs on the device and on the
// host.
#pragma once

#include "cuda/access.h"
#include "cuda/gradient_table.h"

namespace fused_optim::cuda {

template <NormType type, class Storage>
struct SumKernel {
  static constexpr int kPack = kPackSize<Storage>;

  /// The sum of a column of these elements. `column`: the thread's number, below kNormColumns.
  FUSED_OPTIM_HOST_DEVICE static double sum_column(uint32_t column, const Storage* x,
                                                   int64_t count) {
    double sums[kPack] = {};
    int64_t i = static_cast<int64_t>(column) * kPack;
    if (reinterpret_cast<uintptr_t>(x) % 16 == 0) {
      constexpr int kInFlight = 4;
      for (; i + (kInFlight - 1) * kRow + kPack <= count; i += kInFlight * kRow) {
        Pack packs[kInFlight];
        FUSED_OPTIM_UNROLL
        for (int p = 0; p < kInFlight; ++p) packs[p] = load(x + i + p * kRow);
        FUSED_OPTIM_UNROLL
        for (int p = 0; p < kInFlight; ++p) add(sums, packs[p]);
      }
      for (; i + kPack <= count; i += kRow) add(sums, load(x + i));
    }
    for (; i < count; i += kRow) FUSED_OPTIM_UNROLL
    for (int k = 0; k < kPack; ++k)
      if (i + k < count) sums[k] = norm_add<type>(sums[k], norm_term<type>(x[i + k]));
    FUSED_OPTIM_UNROLL
    for (int half = kPack / 2; half > 0; half /= 2) FUSED_OPTIM_UNROLL
    for (int k = 0; k < half; ++k) sums[k] = norm_add<type>(sums[k], sums[k + half]);
    return sums[0];
  }

  /// Calls sum(data, count) for the elements of a chunk and writes what it returns, if this thread
  /// is the one that knows the sum.
  template <class Sum>
  FUSED_OPTIM_HOST_DEVICE static void sum_chunk(const GradientTableView& table, uint32_t chunk,
                                                Sum sum, bool knows_sum = true) {
    const GradientChunk elements = table.at(chunk);
    const double result =
        sum(static_cast<const Storage*>(elements.template elements<Storage>()), elements.count);
    if (knows_sum) table.head.sums[elements.number] = result;
  }

  /// One level of the addition of columns: `half` is 128, 64, ..., 1.
  FUSED_OPTIM_INLINE static void add_columns(double* columns, uint32_t column, uint32_t half) {
    if (column < half) columns[column] = norm_add<type>(columns[column], columns[column + half]);
  }

 private:
  static constexpr int64_t kRow = kNormColumns * kPack;

  FUSED_OPTIM_INLINE static void add(double (&sums)[kPack], const Pack& pack) {
    FUSED_OPTIM_UNROLL
    for (int k = 0; k < kPack; ++k)
      sums[k] = norm_add<type>(sums[k], norm_term<type>(decode<Storage>(pack, k)));
  }
};

/// What a block does with elements in host memory, thread by thread.
template <NormType type, class Storage>
double sum_block_on_host(const Storage* x, int64_t count) {
  using Kernel = SumKernel<type, Storage>;
  double columns[kNormColumns];
  for (uint32_t column = 0; column < kNormColumns; ++column)
    columns[column] = Kernel::sum_column(column, x, count);
  for (uint32_t half = kNormColumns / 2; half > 0; half /= 2)
    for (uint32_t column = 0; column < half; ++column) Kernel::add_columns(columns, column, half);
  return columns[0];
}

/// Multiplies gradients; where the norm is small enough, nothing is read or written.
template <class Storage>
struct ScaleKernel {
  static constexpr int kPack = kPackSize<Storage>;

  FUSED_OPTIM_HOST_DEVICE static void run(uint32_t block, uint32_t thread, uint32_t num_blocks,
                                          uint32_t num_threads, const GradientTableView& table) {
    const double coefficient = clip_coefficient(*table.head.norm, table.head.max_norm);
    if (coefficient == 1.0) return;
    const auto factor = static_cast<opmath_t<Storage>>(coefficient);
    for (uint32_t chunk = block; chunk < table.head.num_chunks; chunk += num_blocks) {
      const GradientChunk elements = table.at(chunk);
      scale(thread, num_threads, elements.template elements<Storage>(), elements.count, factor);
    }
  }

 private:
  FUSED_OPTIM_INLINE static void scale_pack(Storage* at, opmath_t<Storage> factor) {
    Pack pack = load(at);
    FUSED_OPTIM_UNROLL
    for (int k = 0; k < kPack; k += kEncoded<Storage>) {
      opmath_t<Storage> values[kEncoded<Storage>];
      FUSED_OPTIM_UNROLL
      for (int j = 0; j < kEncoded<Storage>; ++j) values[j] = decode<Storage>(pack, k + j) * factor;
      encode<Storage>(pack, k, values);
    }
    store(at, pack);
  }

  FUSED_OPTIM_INLINE static void scale(uint32_t thread, uint32_t num_threads, Storage* x,
                                       int64_t count, opmath_t<Storage> factor) {
    int64_t done = 0;
    if (reinterpret_cast<uintptr_t>(x) % 16 == 0) {
      const int64_t packs = count / kPack;
      for (int64_t i = thread; i < packs; i += num_threads) scale_pack(x + i * kPack, factor);
      done = packs * kPack;
    }
    for (int64_t i = done + thread; i < count; i += num_threads)
      x[i] = to_storage<Storage>(to_opmath(x[i]) * factor);
  }
};

}  // namespace fused_optim::cuda
