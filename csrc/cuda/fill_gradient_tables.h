// From gradients to gradient tables: as many tensors in each as it has entries.
#pragma once

#include <vector>

#include "cuda/as_argument.h"
#include "cuda/gradient_table.h"
#include "reduce/gradients.h"

namespace fused_optim::cuda {

struct GradientLaunch {
  Format dtype;
  GradientTableHead head;             // its addresses and the largest norm are not set
  std::vector<GradientView> entries;  // no more than a GradientTable has

  GradientTableView view() const { return {head, entries.data()}; }

  template <class Visit>
  void as_argument(Visit visit) const {
    cuda::as_argument<SmallGradientTable, GradientTable>(head, entries, visit);
  }
};

/// The launches that see each gradient on this device once.
std::vector<GradientLaunch> fill_gradient_tables(const Gradients& gradients, Device device);

}  // namespace fused_optim::cuda
