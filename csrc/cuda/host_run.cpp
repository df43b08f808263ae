#include "cuda/host_run.h"

#include <stdexcept>

#include "step/kernel_types.h"

// The kernels are run here by tests alone. What a GPU must have inlined is left to the compiler,
// which else takes twice as long. The rules, included before this, are as everywhere.
#undef FUSED_OPTIM_INLINE
#define FUSED_OPTIM_INLINE inline

#include "cuda/fill_gradient_tables.h"
#include "cuda/host_block.h"
#include "cuda/kernel_body.h"
#include "cuda/norm_body.h"

namespace fused_optim::cuda {
namespace {

template <class Kernel>
void run_table(const TableView& table, uint32_t blocks, uint32_t threads) {
  for (uint32_t number = 0; number < blocks; ++number) {
    typename Kernel::Scalars scalars;
    Kernel::run(HostBlock{number, blocks, threads}, table, scalars);
  }
  for (uint32_t thread = 0; thread < threads; ++thread)
    Kernel::advance_steps(thread, threads, table);
}

constexpr Device kHost{DeviceKind::CPU, 0};

template <NormType type, class Storage>
void sum_table(const GradientTableView& table, uint32_t blocks) {
  for (uint32_t block = 0; block < blocks; ++block)
    for (uint32_t chunk = block; chunk < table.head.num_chunks; chunk += blocks)
      SumKernel<type, Storage>::sum_chunk(table, chunk, sum_block_on_host<type, Storage>);
}

using RunTable = void (*)(const TableView&, uint32_t, uint32_t);

}  // namespace

int run_on_host(const Bucket& bucket, const DeviceInputs& inputs, uint32_t blocks,
                uint32_t threads) {
  RunTable run = nullptr;
  const TensorEntry& first = bucket.first();
  with_element(first.kernel_kind(), first.formats[kParam], [&]<class Element>(Element) {
    with_kernel_types<Element>(bucket.table->rule, first.mask, [&]<class Types>(Types) {
      run = run_table<StepKernel<typename Types::Rule, Types::states, Element>>;
    });
  });
  if (run == nullptr) throw std::logic_error("fused_optim: no kernel for this bucket");
  if (first.is_compact() && threads % 32 != 0)
    throw std::invalid_argument("threads of compact formats come in warps of 32");
  const std::vector<FilledTable> tables = fill_tables(bucket, inputs);
  for (const FilledTable& table : tables) run(table.view(), blocks, threads);
  return static_cast<int>(tables.size());
}

double norm_on_host(const Gradients& gradients, NormType type, uint32_t blocks) {
  std::vector<double> sums(gradients.num_chunks);
  return with_norm_type(type, [&]<NormType kType>(std::integral_constant<NormType, kType>) {
    for (GradientLaunch& launch : fill_gradient_tables(gradients, kHost)) {
      launch.head.sums = sums.data();
      with_storage(launch.dtype, [&]<class Storage>(Storage) {
        sum_table<kType, Storage>(launch.view(), blocks);
      });
    }
    const double sum =
        sum_block_on_host<type_of_sums(kType), double>(sums.data(), gradients.num_chunks);
    return norm_of_sum(kType, sum);
  });
}

void scale_on_host(const Gradients& gradients, double norm, double max_norm, uint32_t blocks) {
  for (GradientLaunch& launch : fill_gradient_tables(gradients, kHost)) {
    launch.head.norm = &norm;
    launch.head.max_norm = max_norm;
    with_storage(launch.dtype, [&]<class Storage>(Storage) {
      for (uint32_t block = 0; block < blocks; ++block)
        for (uint32_t thread = 0; thread < kNormColumns; ++thread)
          ScaleKernel<Storage>::run(block, thread, blocks, kNormColumns, launch.view());
    });
  }
}

}  // namespace fused_optim::cuda
