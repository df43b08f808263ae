// A norm over several ranks: which meshes the parameters lie on, and what exchanges the sums.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include <cstdint>
#include <vector>

namespace fused_optim {

/// A mesh, borrowed, and this rank's coordinate in it, empty where it is not in it. Equal meshes
/// have one number.
struct MeshPlace {
  PyObject* mesh;
  int number;
  std::vector<int64_t> coordinate;
};

/// What the ranks have together: the same on all of them.
struct Contributions {
  at::Tensor sums;  // float64 of one dimension, which give the norm
  bool has_overflowed = false;
  at::Tensor found_inf = {};  // float32 of one element, where the sums are on a device
};

struct AcrossRanks {
  std::vector<MeshPlace> meshes;
  int num_meshes = 0;            // that are not equal
  PyObject* exchange = nullptr;  // a callable, borrowed

  /// The place of this mesh, nullptr where it has none.
  const MeshPlace* find(PyObject* mesh) const {
    for (const MeshPlace& place : meshes)
      if (place.mesh == mesh) return &place;
    return nullptr;
  }

  /// Gives this rank's sums, of plain tensors and then of each mesh, for those of all. This runs
  /// Python code and collectives. Throws PythonError, with one set where another rank has met with
  /// one, or NotFused where another one takes torch's step.
  Contributions exchange_sums(const at::Tensor& sums) const;
};

}  // namespace fused_optim
