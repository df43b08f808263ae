// From a bucket to kernel tables: as many tensors in each as its bytes hold.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/kernel_table.h"
#include "step/table.h"

namespace fused_optim::cuda {

/// A table of no more words than a KernelTable has.
struct FilledTable {
  TableHead head;
  std::vector<uint64_t> words;

  TableView view() const { return {head, words.data()}; }

  /// Calls visit(table) with the kernel's argument: the smallest that holds the words. What lies
  /// beyond them is not set, and no kernel reads it.
  template <class Visit>
  void as_argument(Visit visit) const {
    if (words.size() <= SmallKernelTable::kWords)
      visit_as<SmallKernelTable>(visit);
    else
      visit_as<KernelTable>(visit);
  }

 private:
  template <class Table, class Visit>
  void visit_as(Visit& visit) const {
    Table table;
    table.head = head;
    std::copy(words.begin(), words.end(), table.words);
    visit(table);
  }
};

/// The tables of the launches that step this bucket, in order.
std::vector<FilledTable> fill_tables(const Bucket& bucket, const DeviceInputs& inputs);

}  // namespace fused_optim::cuda
