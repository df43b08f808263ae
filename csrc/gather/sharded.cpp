#include "gather/sharded.h"

#include <structmember.h>

#include <algorithm>

#include "gather/lookup.h"
#include "gather/python_dict.h"
#include "gather/python_tensor.h"

namespace fused_optim {
namespace {

PyObject* g_module_name;             // of DTensor
PyObject* g_placements_module_name;  // of the kinds of placements
PyObject* g_spec_module_name;
PyObject* g_local_tensor_key;
PyObject* g_spec_key;
PyObject* g_mesh_key;
PyObject* g_placements_key;
PyObject* g_shard_order_key;
PyObject* g_dim_key;
PyObject* g_split_factor_key;

/// An attribute, of which its object stays the owner.
PyObject* borrow(PyObject* object, PyObject* key) {
  PyObject* value = PyObject_GetAttr(object, key);
  if (value == nullptr) throw PythonError();
  Py_DECREF(value);
  return value;
}

/// A number in an attribute, which may be made for the asking.
int64_t number_of(PyObject* object, PyObject* key) {
  THPObjectPtr value(PyObject_GetAttr(object, key));
  if (!value) throw PythonError();
  const int64_t number = PyLong_AsLongLong(value.get());
  if (number == -1 && PyErr_Occurred()) throw PythonError();
  return number;
}

/// A class of a module that has been imported, borrowed from the module; nullptr where it has not.
PyTypeObject* imported_class(PyObject* module_name, const char* name) {
  PyObject* module = get_item(PyImport_GetModuleDict(), module_name);
  if (module == nullptr || !PyModule_CheckExact(module)) return nullptr;
  PyObject* found = PyDict_GetItemString(PyModule_GetDict(module), name);
  return found != nullptr && PyType_Check(found) ? reinterpret_cast<PyTypeObject*>(found) : nullptr;
}

/// Where a class that names it in `__slots__` keeps an attribute; 0 where it does not.
Py_ssize_t offset_of_slot(PyTypeObject* type, PyObject* name) {
  PyObject* descriptor = get_item(type->tp_dict, name);
  if (descriptor == nullptr || Py_TYPE(descriptor) != &PyMemberDescr_Type) return 0;
  const PyMemberDef* member = reinterpret_cast<PyMemberDescrObject*>(descriptor)->d_member;
  return member->type == T_OBJECT_EX ? member->offset : 0;
}

/// What Shards have said of themselves. Asking one takes 0.2 us, and its answer never changes: so
/// it is kept, with a reference, in a table where a newer one takes the place of an older.
class AskedShards {
 public:
  struct Answer {
    PyObject* shard = nullptr;
    int64_t dim = 0, split_factor = 0;
  };

  /// `is_strided`: whether it has a split factor.
  Answer ask(PyObject* shard, bool is_strided) {
    Answer& kept = answers_[(reinterpret_cast<uintptr_t>(shard) >> 4) % kCapacity];
    if (kept.shard == shard) return kept;
    const Answer answer{shard, number_of(shard, g_dim_key),
                        is_strided ? number_of(shard, g_split_factor_key) : 0};
    Py_INCREF(shard);
    PyObject* replaced = std::exchange(kept, answer).shard;
    Py_XDECREF(replaced);
    return answer;
  }

 private:
  static constexpr size_t kCapacity = 1 << 12;
  Answer answers_[kCapacity];
};

AskedShards g_asked_shards;

/// A spec's tuple, borrowed.
PyObject* placements_of(PyObject* spec) {
  PyObject* placements = borrow(spec, g_placements_key);
  if (!PyTuple_CheckExact(placements)) throw NotFused("a DTensor's placements are no tuple");
  return placements;
}

/// The order in which dimensions of the mesh shard one dimension of the tensor. Tuples of numbers;
/// torch before 2.10 had no such thing.
bool have_same_order(PyObject* spec, PyObject* other) {
  THPObjectPtr a(PyObject_GetAttr(spec, g_shard_order_key));
  if (!a) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw PythonError();
    PyErr_Clear();
    return true;
  }
  THPObjectPtr b(PyObject_GetAttr(other, g_shard_order_key));
  if (a && b && a.get() == b.get()) return true;
  const int are_same = b ? PyObject_RichCompareBool(a.get(), b.get(), Py_EQ) : -1;
  if (are_same < 0) throw PythonError();
  return are_same == 1;
}

}  // namespace

void Sharded::find_types() {
  has_looked_ = true;
  dtensor_ = imported_class(g_module_name, "DTensor");
  if (dtensor_ == nullptr) return;
  local_tensor_offset_ = offset_of_slot(dtensor_, g_local_tensor_key);
  spec_offset_ = offset_of_slot(dtensor_, g_spec_key);
  spec_ = imported_class(g_spec_module_name, "DTensorSpec");
  shard_ = imported_class(g_placements_module_name, "Shard");
  strided_shard_ = imported_class(g_placements_module_name, "_StridedShard");
  replicate_ = imported_class(g_placements_module_name, "Replicate");
}

bool Sharded::is_dtensor(PyObject* object) {
  if (!has_looked_) find_types();
  return Py_TYPE(object) == dtensor_;
}

bool Sharded::derives_from_dtensor(PyObject* object) {
  return is_dtensor(object) ||
         (dtensor_ != nullptr && PyType_IsSubtype(Py_TYPE(object), dtensor_) != 0);
}

/// Slots are read where they lie: a step asks for them ten times a tensor.
PyObject* Sharded::attribute_of(PyObject* dtensor, Py_ssize_t offset, PyObject* name) const {
  if (offset != 0 && Py_TYPE(dtensor) == dtensor_) {
    auto* slot = reinterpret_cast<PyObject**>(reinterpret_cast<char*>(dtensor) + offset);
    if (*slot == nullptr) throw NotFused("a DTensor lacks its local tensor or its spec");
    return *slot;
  }
  return borrow(dtensor, name);
}

PyObject* Sharded::local_of(PyObject* dtensor) const {
  PyObject* local = attribute_of(dtensor, local_tensor_offset_, g_local_tensor_key);
  if (!is_plain_type(local)) throw NotFused("a DTensor's local tensor is of a tensor subclass");
  return local;
}

PyObject* Sharded::spec_of(PyObject* dtensor) const {
  PyObject* spec = attribute_of(dtensor, spec_offset_, g_spec_key);
  if (Py_TYPE(spec) != spec_) throw NotFused("a DTensor's spec is no DTensorSpec");
  return spec;
}

bool Sharded::is_shard(PyObject* placement) const {
  return Py_TYPE(placement) == shard_ || Py_TYPE(placement) == strided_shard_;
}

const Sharded::Placed& Sharded::placed(PyObject* spec) {
  if (spec == last_placed_.spec) return last_placed_;
  PyObject* placements = placements_of(spec);
  Placed found{spec};
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(placements); ++i) {
    PyObject* placement = PyTuple_GET_ITEM(placements, i);
    if (is_shard(placement))
      found.sharded_dims |= 1u << i;
    else if (Py_TYPE(placement) != replicate_)
      found.other = Py_TYPE(placement);
  }
  return last_placed_ = found;
}

void Sharded::check_is_placed(PyObject* spec) {
  if (const PyTypeObject* other = placed(spec).other)
    throw NotFused(std::string("a parameter is placed as ") + other->tp_name);
}

bool Sharded::are_equal(PyObject* placement, PyObject* other) const {
  if (placement == other) return true;
  if (Py_TYPE(placement) != Py_TYPE(other)) return false;
  if (Py_TYPE(placement) == replicate_) return true;
  if (!is_shard(placement)) return false;
  const bool is_strided = Py_TYPE(placement) == strided_shard_;
  const AskedShards::Answer a = g_asked_shards.ask(placement, is_strided);
  const AskedShards::Answer b = g_asked_shards.ask(other, is_strided);
  return a.dim == b.dim && a.split_factor == b.split_factor;
}

bool Sharded::are_placed_alike(PyObject* spec, PyObject* other) {
  if (spec == other || last_alike_ == std::pair(spec, other)) return true;
  if (!known_.are_equal(mesh_of(spec), mesh_of(other))) return false;
  PyObject *a = placements_of(spec), *b = placements_of(other);
  if (PyTuple_GET_SIZE(a) != PyTuple_GET_SIZE(b)) return false;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(a); ++i)
    if (!are_equal(PyTuple_GET_ITEM(a, i), PyTuple_GET_ITEM(b, i))) return false;
  if (PyTuple_GET_SIZE(a) > 1 && !have_same_order(spec, other)) return false;
  last_alike_ = {spec, other};
  return true;
}

uint32_t Sharded::sharded_dims(PyObject* spec) {
  const Placed& found = placed(spec);
  if (found.other == nullptr) return found.sharded_dims;
  throw std::runtime_error(
      "fused_optim: a norm over several ranks needs parameters that are sharded or replicated, "
      "and one is placed as " +
      placement_text(spec) + ". Nothing was changed.");
}

PyObject* mesh_of(PyObject* spec) {
  return borrow(spec, g_mesh_key);
}

std::string placement_text(PyObject* spec) {
  std::string text;
  for (PyObject* key : {g_placements_key, g_mesh_key}) {
    THPObjectPtr value(PyObject_GetAttr(spec, key));
    THPObjectPtr shown(value ? PyObject_Repr(value.get()) : nullptr);
    const char* chars = shown ? PyUnicode_AsUTF8(shown.get()) : nullptr;
    if (chars == nullptr) throw PythonError();
    text += (text.empty() ? "" : " on ") + std::string(chars);
  }
  return text;
}

THPObjectPtr placements_of_params(PyObject* params) {
  KnownMeshes known;
  Sharded sharded(known);
  THPObjectPtr found(PyList_New(0));
  if (!found) throw PythonError();
  std::vector<std::pair<PyObject*, uint32_t>> seen;
  bool has_others = false;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(params); ++i) {
    PyObject* param = PyList_GET_ITEM(params, i);
    if (is_plain_type(param) || !sharded.derives_from_dtensor(param)) {
      has_others = true;
      continue;
    }
    PyObject* spec = sharded.spec_of(param);
    const std::pair place(mesh_of(spec), sharded.sharded_dims(spec));
    if (std::find(seen.rbegin(), seen.rend(), place) != seen.rend()) continue;
    seen.push_back(place);
    THPObjectPtr item(Py_BuildValue("(OI)", place.first, place.second));
    if (!item || PyList_Append(found, item) < 0) throw PythonError();
  }
  THPObjectPtr answer(Py_BuildValue("(OO)", found.get(), has_others ? Py_True : Py_False));
  if (!answer) throw PythonError();
  return answer;
}

void initialize_sharded() {
  g_module_name = intern("torch.distributed.tensor");
  g_placements_module_name = intern("torch.distributed.tensor.placement_types");
  g_spec_module_name = intern("torch.distributed.tensor._dtensor_spec");
  g_local_tensor_key = intern("_local_tensor");
  g_spec_key = intern("_spec");
  g_mesh_key = intern("mesh");
  g_placements_key = intern("placements");
  g_shard_order_key = intern("shard_order");
  g_dim_key = intern("dim");
  g_split_factor_key = intern("split_factor");
}

}  // namespace fused_optim
