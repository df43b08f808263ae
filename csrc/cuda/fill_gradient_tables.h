// From gradients to gradient tables: as many tensors in each as it has entries.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/gradient_table.h"
#include "reduce/gradients.h"

namespace fused_optim::cuda {

struct GradientLaunch {
  Format dtype;
  GradientTableHead head;             // its addresses and the largest norm are not set
  std::vector<GradientView> entries;  // no more than a GradientTable has

  GradientTableView view() const { return {head, entries.data()}; }

  /// Calls visit(table) with the kernel's argument: the smallest that holds the entries. What lies
  /// beyond them is not set, and no kernel reads it.
  template <class Visit>
  void as_argument(Visit visit) const {
    if (entries.size() <= SmallGradientTable::kEntries)
      visit_as<SmallGradientTable>(visit);
    else
      visit_as<GradientTable>(visit);
  }

 private:
  template <class Table, class Visit>
  void visit_as(Visit& visit) const {
    Table table;
    table.head = head;
    std::copy(entries.begin(), entries.end(), table.entries);
    visit(table);
  }
};

/// The launches that see each gradient on this device once.
std::vector<GradientLaunch> fill_gradient_tables(const Gradients& gradients, Device device);

}  // namespace fused_optim::cuda
