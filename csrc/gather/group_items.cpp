#include "gather/group_items.h"

#include <bitset>
#include <iterator>
#include <string>

#include "base/errors.h"
#include "gather/lookup.h"
#include "gather/python_dict.h"
#include "gather/step_options.h"

namespace fused_optim {
namespace {

PyObject* g_step_option_keys[std::size(kStepOptionNames)];
/// A bit for each hash, but for its upper ones, that an option of a group or a step has.
std::bitset<4096> g_option_hashes;

/// Of a string that is a key of a dict, which has asked for it.
size_t hash_of(PyObject* key) {
  return static_cast<size_t>(reinterpret_cast<PyASCIIObject*>(key)->hash);
}

// What a key is: a bit for each hyperparameter that is or is in its value, and these.
constexpr uint32_t kOfHyperparameters = (1u << kMaxHyperparameters) - 1;
constexpr uint32_t kIsMaximize = 1u << 30, kMayBeOption = 1u << 31;

uint32_t uses_of(PyObject* key, const RuleRows& rows) {
  uint32_t uses = key == maximize_key() ? kIsMaximize : 0;
  for (size_t i = 0; i < rows.hyperparameters.size(); ++i)
    if (key == rows.hyperparameters[i].key) uses |= 1u << i;
  if (uses != 0) return uses;
  const bool may_be_option =
      !PyUnicode_CheckExact(key) || g_option_hashes[hash_of(key) % g_option_hashes.size()];
  return may_be_option ? kMayBeOption : 0;
}

}  // namespace

GroupItems::GroupItems(PyObject* group, const RuleRows& rows, LastKeys& last)
    : group_(group), rows_(rows), last_(last) {
  PyObject *key, *value;
  int number = 0;
  bool has_other_keys = false;
  for (Py_ssize_t position = 0; PyDict_Next(group, &position, &key, &value); ++number) {
    const bool is_as_before = number < last.size && last.keys[number] == key;
    const uint32_t uses = is_as_before ? last.uses[number] : uses_of(key, rows);
    if (!is_as_before && number < LastKeys::kMost) {
      last.keys[number] = key;
      last.uses[number] = uses;
      last.size = number + 1;
    }
    for (uint32_t rest = uses & kOfHyperparameters; rest != 0; rest &= rest - 1)
      hyperparameters_[__builtin_ctz(rest)] = value;
    if ((uses & kIsMaximize) != 0) maximize_ = value;
    if ((uses & kMayBeOption) == 0) continue;
    may_have_options_ = true;
    has_other_keys |= !PyUnicode_CheckExact(key);
  }
  // A lookup compares them, which is code of the user's.
  if (has_other_keys) may_have_changed();
}

/// Looked up where the walk did not find it as well: keys that were unpickled are not interned.
PyObject* GroupItems::find(PyObject* found, PyObject* key, const char* name) const {
  PyObject* value = found != nullptr && is_fresh_ ? found : get_item(group_, key);
  if (value == nullptr) throw NotFused(std::string("a parameter group has no '") + name + "'");
  return value;
}

PyObject* GroupItems::hyperparameter(int index, const char* name) const {
  const HyperparameterKey& key = rows_.hyperparameters[index];
  PyObject* value = find(hyperparameters_[index], key.key, name);
  if (key.item < 0) return value;
  const bool is_list = PyList_CheckExact(value);
  if (!is_list && !PyTuple_CheckExact(value))
    throw NotFused(std::string("'") + name + "' is not in a tuple");
  const Py_ssize_t size = is_list ? PyList_GET_SIZE(value) : PyTuple_GET_SIZE(value);
  if (key.item >= size) throw NotFused(std::string("'") + name + "' is missing");
  return is_list ? PyList_GET_ITEM(value, key.item) : PyTuple_GET_ITEM(value, key.item);
}

PyObject* GroupItems::maximize() const {
  return find(maximize_, maximize_key(), "maximize");
}

std::span<PyObject* const> step_option_keys() {
  return g_step_option_keys;
}

void initialize_group_items() {
  for (size_t i = 0; i < std::size(kStepOptionNames); ++i)
    g_step_option_keys[i] = intern(kStepOptionNames[i]);
  const auto note = [](PyObject* key) {
    g_option_hashes.set(static_cast<size_t>(PyObject_Hash(key)) % g_option_hashes.size());
  };
  for (PyObject* key : g_step_option_keys) note(key);
  for (PyObject* key : {state_dtype_key(), master_bits_key(), stochastic_rounding_key()}) note(key);
}

}  // namespace fused_optim
