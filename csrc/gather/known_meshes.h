// What a step has to ask Python about meshes and specs, once no tensor is borrowed.
#pragma once

#include <Python.h>
#include <torch/csrc/utils/object_ptr.h>

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace fused_optim {

/// What is Python's to say of meshes and specs: nothing of it runs while tensors are borrowed. So a
/// gather goes on with a guess, and if it met with anything that nobody has asked about, that is
/// made good and the gather done again.
class KnownMeshes {
 public:
  /// Of meshes that are not the same object.
  bool are_equal(PyObject* a, PyObject* b);

  /// The place in the whole tensor of the first element of this rank's part.
  int64_t first_index(PyObject* spec);

  /// Asks Python about those that were met. Returns whether there were any. Throws PythonError.
  bool ask();

 private:
  struct Answer {
    THPObjectPtr a, b;
    bool are_equal;
  };
  std::map<std::pair<PyObject*, PyObject*>, Answer> answers_;
  std::vector<std::pair<THPObjectPtr, THPObjectPtr>> unknown_;
  std::map<PyObject*, std::pair<THPObjectPtr, int64_t>> first_indices_;
  std::vector<THPObjectPtr> unknown_specs_;
};

}  // namespace fused_optim
