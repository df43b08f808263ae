// From a bucket to kernel tables: as many tensors in each as its bytes hold.
#pragma once

#include <vector>

#include "cuda/as_argument.h"
#include "cuda/kernel_table.h"
#include "step/table.h"

namespace fused_optim::cuda {

/// A table of no more words than a KernelTable has.
struct FilledTable {
  TableHead head;
  std::vector<uint64_t> words;

  TableView view() const { return {head, words.data()}; }

  template <class Visit>
  void as_argument(Visit visit) const {
    cuda::as_argument<SmallKernelTable, KernelTable>(head, words, visit);
  }
};

/// The tables of the launches that step this bucket, in order.
std::vector<FilledTable> fill_tables(const Bucket& bucket, const DeviceInputs& inputs);

}  // namespace fused_optim::cuda
