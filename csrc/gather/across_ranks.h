// A norm over several ranks: how the parameters are placed, and what exchanges the sums.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include <cstdint>
#include <vector>

namespace fused_optim {

/// How some of the parameters are placed: on a mesh, borrowed, sharded along some of its
/// dimensions. Those that are placed alike have one number.
struct Placement {
  PyObject* mesh;
  uint32_t sharded_dims;
  int number;
};

/// What the ranks have together: the same on all of them.
struct Contributions {
  at::Tensor sums;  // float64 of one dimension, which give the norm
  bool has_overflowed = false;
  at::Tensor found_inf = {};  // float32 of one element, where the sums are on a device
};

struct AcrossRanks {
  std::vector<Placement> placements;
  int num_different = 0;
  PyObject* exchange = nullptr;  // a callable, borrowed

  /// The number of parameters that are placed so; -1 where there are none.
  int find(PyObject* mesh, uint32_t sharded_dims) const {
    for (const Placement& placement : placements)
      if (placement.mesh == mesh && placement.sharded_dims == sharded_dims) return placement.number;
    return -1;
  }

  /// Gives this rank's sums, of plain tensors and then of each placement, for those of all. This
  /// runs Python code and collectives. Throws PythonError, with one set where another rank has met
  /// with one, or NotFused where another one takes torch's step.
  Contributions exchange_sums(const at::Tensor& sums) const;
};

}  // namespace fused_optim
