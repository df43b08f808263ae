// DTensors as a step sees them: this rank's part, and how the whole is placed on a mesh.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>
#include <torch/csrc/utils/object_ptr.h>

#include <string>
#include <utility>
#include <vector>

#include "base/errors.h"

namespace fused_optim {

/// Two meshes are not the same object, and whether they are equal is Python's to say: nothing of
/// it runs while tensors are borrowed.
struct UnknownMeshes {
  THPObjectPtr a, b;
};

/// What Python has said of pairs of meshes.
class KnownMeshes {
 public:
  /// Asks Python. Throws PythonError.
  void compare(UnknownMeshes pair);

  /// Throws UnknownMeshes where nobody has asked.
  bool are_equal(PyObject* a, PyObject* b) const;

 private:
  struct Answer {
    THPObjectPtr a, b;
    bool are_equal;
  };
  std::vector<Answer> answers_;
};

/// Attributes of DTensors, read without running Python code. One for each step: the types are those
/// that the process has now.
class Sharded {
 public:
  explicit Sharded(const KnownMeshes& known) : known_(known) {}

  /// Whether it is exactly a DTensor. The first question looks in sys.modules: nothing is imported.
  bool is_dtensor(PyObject* object);

  /// The same of a DTensor or a subclass.
  bool derives_from_dtensor(PyObject* object);

  /// Asks the memory for where a DTensor has its attributes.
  void prefetch(PyObject* dtensor) const {
    __builtin_prefetch(dtensor);
    if (spec_offset_ != 0)
      __builtin_prefetch(reinterpret_cast<const char*>(dtensor) + spec_offset_);
  }

  /// This rank's part, borrowed. Throws NotFused where that is no plain tensor.
  PyObject* local_of(PyObject* dtensor) const;

  /// How it is placed, borrowed.
  PyObject* spec_of(PyObject* dtensor) const;

  /// Throws NotFused unless each of its elements is on some rank as it is: sharded or replicated.
  void check_is_placed(PyObject* spec);

  /// Whether both lie on equal meshes in the same way. Throws UnknownMeshes.
  bool are_placed_alike(PyObject* spec, PyObject* other);

  /// Whether this rank's part counts in a sum over the mesh: replicas do once, where the rank's
  /// coordinate is 0. `coordinate`: the rank's in the mesh.
  bool is_first_replica(PyObject* spec, const std::vector<int64_t>& coordinate);

 private:
  void find_types();
  bool are_equal(PyObject* placement, PyObject* other) const;
  bool is_shard(PyObject* placement) const;
  PyObject* attribute_of(PyObject* dtensor, Py_ssize_t offset, PyObject* name) const;

  const KnownMeshes& known_;
  bool has_looked_ = false;
  PyTypeObject* dtensor_ = nullptr;  // borrowed, as the others: their module owns them
  PyTypeObject* shard_ = nullptr;
  PyTypeObject* strided_shard_ = nullptr;
  PyTypeObject* replicate_ = nullptr;
  Py_ssize_t local_tensor_offset_ = 0;  // in a DTensor, in bytes; 0 where it has no such slot
  Py_ssize_t spec_offset_ = 0;          // likewise
  PyObject* last_placed_ = nullptr;     // the last spec that was in order
  std::pair<PyObject*, PyObject*> last_alike_;
};

/// The mesh of a spec, borrowed.
PyObject* mesh_of(PyObject* spec);

/// For errors: "(Shard(dim=0),) on a mesh of [2]". Runs Python code.
std::string placement_text(PyObject* spec);

/// The meshes of all DTensors among the parameters of groups, each object once, in the order of
/// their first parameters: a new list.
THPObjectPtr meshes_of_params(PyObject* param_groups);

/// Interns the names of attributes.
void initialize_sharded();

}  // namespace fused_optim
