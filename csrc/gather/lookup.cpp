#include "gather/lookup.h"

#include "base/errors.h"
#include "gather/group_items.h"
#include "gather/python_dict.h"
#include "gather/python_tensor.h"
#include "rules/registry.h"

namespace fused_optim {
namespace {

RuleRows g_rows[kNumRules];
PyObject* g_params_key;
PyObject* g_maximize_key;
PyObject* g_state_dtype_key;
PyObject* g_master_bits_key;
PyObject* g_stochastic_rounding_key;
PyTypeObject* g_defaultdict_type;

template <class T>
void prefetch(const T* object) {
  const char* line = reinterpret_cast<const char*>(object);
  for (size_t offset = 0; offset < sizeof(T); offset += 64) __builtin_prefetch(line + offset);
}

/// The parameter's state dict, or nullptr. Tensor.__hash__ is id(), so the hash is known and the
/// call into Python that a plain lookup would make is saved.
PyObject* find_state(PyObject* states, PyObject* param) {
  PyObject* found = _PyDict_GetItem_KnownHash(states, param, reinterpret_cast<Py_hash_t>(param));
  if (found == nullptr && PyErr_Occurred()) throw PythonError();
  if (found != nullptr && !is_plain_dict(found))
    throw NotFused("a parameter's state is no plain dict");
  return found;
}

/// Where the value of this interned key belongs; nullptr where there is no use for it.
PyObject** place_of(PyObject* key, const Lookup& lookup, FoundParam& param) {
  for (int i = 0; i < lookup.num_rows; ++i)
    if (key == lookup.rows.keys[i]) return lookup.is_on(i) ? &param.values[i] : nullptr;
  return nullptr;
}

/// Looks up by value what was not found by identity: keys that were unpickled are not interned.
void find_by_value(const Lookup& lookup, FoundParam& param) {
  for (int i = lookup.num_rows; i < lookup.rows.num_rows; ++i)
    if (lookup.rows.rows[i].kind != RowKind::Counter &&
        get_item(param.state, lookup.rows.keys[i]) != nullptr)
      throw HasCompact();
  for (int i = 0; i < lookup.num_rows; ++i)
    if (lookup.is_on(i) && param.values[i] == nullptr)
      param.values[i] = get_item(param.state, lookup.rows.keys[i]);
}

/// Throws NotFused where a key is no string: comparing it could run code of the user's.
void find_values(const Lookup& lookup, FoundParam& param) {
  if (param.state == nullptr || PyDict_GET_SIZE(param.state) == 0) return;
  PyObject *key, *value;
  bool are_all_known = true;
  for (Py_ssize_t position = 0; PyDict_Next(param.state, &position, &key, &value);) {
    if (PyObject** place = place_of(key, lookup, param)) {
      *place = value;
      lookup.sharded.prefetch(value);
      continue;
    }
    if (!PyUnicode_CheckExact(key))
      throw NotFused("a parameter's state has a key that is no string");
    are_all_known = false;
  }
  if (!are_all_known) find_by_value(lookup, param);
}

/// Calls visit(TensorImpl) for each state that is a plain tensor, or a DTensor's part.
template <class Visit>
inline void for_each_state(const FoundParam& param, const Lookup& lookup, Visit visit) {
  for (int row = 0; row < lookup.num_rows; ++row) {
    PyObject* value = param.values[row];
    if (value == nullptr) continue;
    if (is_plain_type(value))
      visit(*unpack(value).unsafeGetTensorImpl());
    else if (param.spec != nullptr && lookup.sharded.is_dtensor(value))
      visit(*unpack(lookup.sharded.local_of(value)).unsafeGetTensorImpl());
  }
}

/// The parameter's own tensor, or this rank's part of it.
inline const at::Tensor& tensor_of(PyObject* param, Sharded& sharded) {
  if (is_plain_type(param)) return unpack(param);
  if (!sharded.is_dtensor(param))
    throw NotFused("a parameter is of another type than Tensor, Parameter and DTensor");
  return unpack(sharded.local_of(param));
}

/// The gradients of DTensors: their objects, and then this rank's parts of them.
void find_local_grads(std::vector<FoundParam>& found, Sharded& sharded) {
  for (FoundParam& param : found) {
    if (param.spec == nullptr || param.grad == nullptr) continue;
    // The gradient keeps its object, which no code makes: that of a subclass exists.
    param.grad_object = object_of(*param.grad);
    if (param.grad_object == nullptr) throw PythonError();
    Py_DECREF(param.grad_object);
    sharded.prefetch(param.grad_object);
  }
  for (const FoundParam& param : found)
    if (param.grad_object != nullptr) sharded.prefetch_local(param.grad_object);
  for (FoundParam& param : found)
    if (param.grad_object != nullptr && sharded.is_dtensor(param.grad_object)) {
      param.grad = &unpack(sharded.local_of(param.grad_object));
      prefetch(param.grad->unsafeGetTensorImpl());
    }
}

/// Of states that are DTensors the objects of their local tensors.
void prefetch_local_states(const std::vector<FoundParam>& found, const Lookup& lookup) {
  for (const FoundParam& param : found)
    for (int row = 0; row < lookup.num_rows; ++row)
      if (param.values[row] != nullptr) lookup.sharded.prefetch_local(param.values[row]);
}

void prefetch_storage(const c10::TensorImpl& tensor) {
  const c10::Storage& storage = tensor.unsafe_storage();
  if (storage) prefetch(storage.unsafeGetStorageImpl());
}

}  // namespace

PyTypeObject* parameter_type;

const RuleRows& rows_of(int rule) {
  return g_rows[rule];
}
PyObject* params_key() {
  return g_params_key;
}
PyObject* maximize_key() {
  return g_maximize_key;
}
PyObject* state_dtype_key() {
  return g_state_dtype_key;
}
PyObject* master_bits_key() {
  return g_master_bits_key;
}
PyObject* stochastic_rounding_key() {
  return g_stochastic_rounding_key;
}

bool is_plain_dict(PyObject* object) {
  return PyDict_CheckExact(object) || Py_TYPE(object) == g_defaultdict_type;
}

bool is_tensor(PyObject* object) {
  return is_plain_type(object) ||
         PyType_IsSubtype(Py_TYPE(object), reinterpret_cast<PyTypeObject*>(THPVariableClass));
}

void check_keys(PyObject* states, Sharded& sharded) {
  PyObject *key, *value;
  for (Py_ssize_t position = 0; PyDict_Next(states, &position, &key, &value);)
    if (!is_plain_type(key) && !PyUnicode_CheckExact(key) && !sharded.is_dtensor(key))
      throw NotFused("the state has a key of another type than Tensor, Parameter and DTensor");
}

void find_batch(const Lookup& lookup, PyObject* const* params, Py_ssize_t first, Py_ssize_t count,
                std::vector<FoundParam>& found) {
  const c10::TensorImpl* owners[kBatch];
  const at::Tensor* tensors[kBatch];
  for (Py_ssize_t i = 0; i < count; ++i) lookup.sharded.prefetch(params[i]);
  for (Py_ssize_t i = 0; i < count; ++i) lookup.sharded.prefetch_local(params[i]);
  for (Py_ssize_t i = 0; i < count; ++i) {
    tensors[i] = &tensor_of(params[i], lookup.sharded);
    owners[i] = unpack(params[i]).unsafeGetTensorImpl();
    prefetch(owners[i]);
    if (&unpack(params[i]) != tensors[i]) prefetch(tensors[i]->unsafeGetTensorImpl());
  }
  found.clear();
  bool has_sharded = false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (owners[i]->autograd_meta() != nullptr) __builtin_prefetch(owners[i]->autograd_meta());
    prefetch_storage(*tensors[i]->unsafeGetTensorImpl());
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    const at::Tensor& grad = owners[i]->grad();
    if (!grad.defined() && !lookup.with_averages()) continue;
    FoundParam& param = found.emplace_back(lookup.num_rows);
    param.object = params[i];
    param.index = first + i;
    param.tensor = tensors[i];
    if (tensors[i] != &unpack(params[i])) {
      param.spec = lookup.sharded.spec_of(params[i]);
      has_sharded = true;
    }
    if (grad.defined()) {
      param.grad = &grad;
      prefetch(grad.unsafeGetTensorImpl());
    }
    param.state = find_state(lookup.states, params[i]);
    if (param.state != nullptr) __builtin_prefetch(param.state);
  }
  if (has_sharded) find_local_grads(found, lookup.sharded);
  for (FoundParam& param : found) find_values(lookup, param);
  if (has_sharded) prefetch_local_states(found, lookup);
  std::erase_if(found, [&](const FoundParam& param) {
    return param.grad == nullptr && param.values[lookup.rows.average()] == nullptr;
  });
  for (const FoundParam& param : found) {
    if (param.grad != nullptr) prefetch_storage(*param.grad->unsafeGetTensorImpl());
    for_each_state(param, lookup, [](const c10::TensorImpl& tensor) { prefetch(&tensor); });
  }
  for (const FoundParam& param : found) for_each_state(param, lookup, prefetch_storage);
}

void initialize_lookup(PyObject* parameter, PyObject* defaultdict_type) {
  g_defaultdict_type = reinterpret_cast<PyTypeObject*>(defaultdict_type);
  Py_INCREF(defaultdict_type);
  parameter_type = reinterpret_cast<PyTypeObject*>(parameter);
  Py_INCREF(parameter);
  g_params_key = intern("params");
  g_maximize_key = intern("maximize");
  g_state_dtype_key = intern("state_dtype");
  g_master_bits_key = intern("master_bits");
  g_stochastic_rounding_key = intern("stochastic_rounding");
  initialize_group_items();
  initialize_sharded();
  for (int rule = 0; rule < kNumRules; ++rule) g_rows[rule] = intern_rows(kRules[rule]);
}

}  // namespace fused_optim
