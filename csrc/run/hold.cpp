#include "run/hold.h"

#include <algorithm>
#include <stdexcept>

#include "gather/python_tensor.h"
#include "gather/sharded.h"

namespace fused_optim {
namespace {

template <class T>
c10::intrusive_ptr<T> owned(T* borrowed) {
  return c10::intrusive_ptr<T>::unsafe_reclaim_from_nonowning(borrowed);
}

/// How many tensors ahead memory is asked for: none of it needs to be in the caches.
constexpr size_t kAhead = 16;

/// What lies so far ahead of place `i`; the last one where nothing does.
template <class T>
const T& ahead(const std::vector<T>& list, size_t i, size_t distance) {
  return list[std::min(i + distance, list.size() - 1)];
}

}  // namespace

Hold::Hold(const Gathered& gathered, What what) {
  const auto lists = {&gathered.written, &gathered.read, &gathered.beside_table};
  size_t count = 0;
  for (const auto* tensors : lists) count += tensors->size();
  held_.reserve(count);
  if (what == What::TensorsAndMemory) memory_.reserve(count);
  for (const auto* tensors : lists)
    for (size_t i = 0; i < tensors->size(); ++i) {
      __builtin_prefetch(ahead(*tensors, i, kAhead));
      __builtin_prefetch(ahead(*tensors, i, kAhead / 2)->unsafe_storage().unsafeGetStorageImpl());
      c10::TensorImpl* tensor = (*tensors)[i];
      c10::StorageImpl* storage = tensor->unsafe_storage().unsafeGetStorageImpl();
      held_.push_back({owned(tensor), storage, storage->data(), storage->nbytes()});
      if (what == What::TensorsAndMemory) memory_.push_back(owned(storage));
    }
  wrappers_.reserve(gathered.wrappers.size());
  for (const Wrapper& wrapper : gathered.wrappers) {
    Py_INCREF(wrapper.object);
    wrappers_.push_back({THPObjectPtr(wrapper.object), wrapper.local});
  }
}

void Hold::check_unmoved() const {
  for (size_t i = 0; i < held_.size(); ++i) {
    __builtin_prefetch(ahead(held_, i, kAhead).tensor.get());
    __builtin_prefetch(ahead(held_, i, kAhead).storage);
    const auto& [tensor, storage, data, bytes] = held_[i];
    if (tensor->unsafe_storage().unsafeGetStorageImpl() != storage || storage->data() != data ||
        storage->nbytes() < bytes)
      throw std::runtime_error(
          "fused_optim: a tensor of this step got other memory while the step was prepared, by "
          "another thread or a finalizer. Nothing was changed.");
  }
  if (wrappers_.empty()) return;
  KnownMeshes known;
  Sharded sharded(known);
  const auto object_ahead = [&](size_t i, size_t distance) {
    return const_cast<PyObject*>(ahead(wrappers_, i, distance).first.get());
  };
  for (size_t i = 0; i < wrappers_.size(); ++i) {
    sharded.prefetch(object_ahead(i, kAhead));
    sharded.prefetch_local(object_ahead(i, kAhead / 2));
    PyObject* object = object_ahead(i, 0);
    const c10::TensorImpl* local = wrappers_[i].second;
    if (!sharded.is_dtensor(object) ||
        unpack(sharded.local_of(object)).unsafeGetTensorImpl() != local)
      throw std::runtime_error(
          "fused_optim: a DTensor of this step got another local tensor while the step was "
          "prepared, by another thread or a finalizer. Nothing was changed.");
  }
}

}  // namespace fused_optim
