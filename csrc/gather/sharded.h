// DTensors as a step sees them: this rank's part, and how the whole is placed on a mesh.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>
#include <torch/csrc/utils/object_ptr.h>

#include <string>
#include <utility>

#include "base/errors.h"
#include "gather/known_meshes.h"

namespace fused_optim {

/// Attributes of DTensors, read without running code of the user's: of others than torch's own
/// types none is read. One for each step: the types are those that the process has now.
class Sharded {
 public:
  explicit Sharded(KnownMeshes& known) : known_(known) {}

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

  /// Likewise for the object of its local tensor. The DTensor's own memory is read for it.
  void prefetch_local(PyObject* dtensor) const {
    if (local_tensor_offset_ == 0 || Py_TYPE(dtensor) != dtensor_) return;
    const char* slot = reinterpret_cast<const char*>(dtensor) + local_tensor_offset_;
    __builtin_prefetch(*reinterpret_cast<PyObject* const*>(slot));
  }

  /// This rank's part, borrowed. Throws NotFused where that is no plain tensor.
  PyObject* local_of(PyObject* dtensor) const;

  /// How it is placed, borrowed. Throws NotFused where that is no DTensorSpec.
  PyObject* spec_of(PyObject* dtensor) const;

  /// Throws NotFused unless each of its elements is on some rank as it is: sharded or replicated.
  void check_is_placed(PyObject* spec);

  /// Whether both lie on equal meshes in the same way.
  bool are_placed_alike(PyObject* spec, PyObject* other);

  /// A bit for each dimension of the mesh along which the tensor is sharded. Throws
  /// std::runtime_error where it is neither sharded nor replicated.
  uint32_t sharded_dims(PyObject* spec);

  /// See KnownMeshes.
  int64_t first_index(PyObject* spec) { return known_.first_index(spec); }

 private:
  /// What a spec's placements say, found out together.
  struct Placed {
    PyObject* spec = nullptr;
    uint32_t sharded_dims = 0;
    PyTypeObject* other = nullptr;  // of a placement that is neither sharded nor replicated
  };

  void find_types();
  const Placed& placed(PyObject* spec);
  bool are_equal(PyObject* placement, PyObject* other) const;
  bool is_shard(PyObject* placement) const;
  PyObject* attribute_of(PyObject* dtensor, Py_ssize_t offset, PyObject* name) const;

  KnownMeshes& known_;
  bool has_looked_ = false;
  PyTypeObject* dtensor_ = nullptr;  // borrowed, as the others: their module owns them
  PyTypeObject* spec_ = nullptr;
  PyTypeObject* shard_ = nullptr;
  PyTypeObject* strided_shard_ = nullptr;
  PyTypeObject* replicate_ = nullptr;
  Py_ssize_t local_tensor_offset_ = 0;  // in a DTensor, in bytes; 0 where it has no such slot
  Py_ssize_t spec_offset_ = 0;          // likewise
  Placed last_placed_;                  // of the last spec
  std::pair<PyObject*, PyObject*> last_alike_;
};

/// The mesh of a spec, borrowed.
PyObject* mesh_of(PyObject* spec);

/// For errors: "(Shard(dim=0),) on a mesh of [2]". Runs Python code.
std::string placement_text(PyObject* spec);

/// A pair of: a list with a pair of the mesh and sharded_dims() for each way in which DTensors
/// among these are placed, in the order of the first of each; and whether others than DTensors are
/// among them. `params`: a list.
THPObjectPtr placements_of_params(PyObject* params);

/// Interns the names of attributes.
void initialize_sharded();

}  // namespace fused_optim
