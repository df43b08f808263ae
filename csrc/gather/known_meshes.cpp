#include "gather/known_meshes.h"

#include "base/errors.h"
#include "gather/python_dict.h"

namespace fused_optim {
namespace {

/// Where parts of specs begin, which never changes either: kept likewise.
class AskedSpecs {
 public:
  struct Answer {
    PyObject* spec = nullptr;
    int64_t first_index = 0;
  };

  Answer& place_of(PyObject* spec) {
    return answers_[(reinterpret_cast<uintptr_t>(spec) >> 4) % kCapacity];
  }

  void keep(THPObjectPtr spec, int64_t first_index) {
    Answer& kept = place_of(spec);
    PyObject* replaced = std::exchange(kept, Answer{spec.release(), first_index}).spec;
    Py_XDECREF(replaced);
  }

 private:
  static constexpr size_t kCapacity = 1 << 12;
  Answer answers_[kCapacity];
};

AskedSpecs g_asked_specs;

int64_t ask_first_index(PyObject* spec) {
  THPObjectPtr module(PyImport_ImportModule("fused_optim.sharding"));
  THPObjectPtr answer(module ? PyObject_CallMethod(module, "first_index", "O", spec) : nullptr);
  const int64_t index = answer ? PyLong_AsLongLong(answer) : -1;
  if (index == -1 && PyErr_Occurred()) throw PythonError();
  return index;
}

}  // namespace

bool KnownMeshes::are_equal(PyObject* a, PyObject* b) {
  if (a == b) return true;
  const auto answer = answers_.find({a, b});
  if (answer != answers_.end()) return answer->second.are_equal;
  unknown_.emplace_back(owned(a), owned(b));
  return true;
}

int64_t KnownMeshes::first_index(PyObject* spec) {
  const auto found = first_indices_.find(spec);
  if (found != first_indices_.end()) return found->second.second;
  const AskedSpecs::Answer& kept = g_asked_specs.place_of(spec);
  if (kept.spec == spec) return kept.first_index;
  unknown_specs_.push_back(owned(spec));
  return 0;
}

bool KnownMeshes::ask() {
  if (unknown_.empty() && unknown_specs_.empty()) return false;
  for (THPObjectPtr& spec : std::exchange(unknown_specs_, {})) {
    PyObject* key = spec.get();
    const int64_t index = ask_first_index(key);
    g_asked_specs.keep(owned(key), index);
    // For this gather, whatever else takes its place in the table.
    first_indices_.insert_or_assign(key, std::pair(std::move(spec), index));
  }
  for (auto& [a, b] : std::exchange(unknown_, {})) {
    const int are_equal = PyObject_RichCompareBool(a.get(), b.get(), Py_EQ);
    if (are_equal < 0) throw PythonError();
    const std::pair key(a.get(), b.get());
    answers_.insert_or_assign(key, Answer{std::move(a), std::move(b), are_equal == 1});
  }
  return true;
}

}  // namespace fused_optim
