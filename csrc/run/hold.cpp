#include "run/hold.h"

#include <stdexcept>

#include "gather/python_tensor.h"
#include "gather/sharded.h"

namespace fused_optim {
namespace {

template <class T>
c10::intrusive_ptr<T> owned(T* borrowed) {
  return c10::intrusive_ptr<T>::unsafe_reclaim_from_nonowning(borrowed);
}

}  // namespace

Hold::Hold(const Gathered& gathered) {
  held_.reserve(gathered.written.size() + gathered.read.size());
  for (const auto* tensors : {&gathered.written, &gathered.read, &gathered.beside_table})
    for (c10::TensorImpl* tensor : *tensors) {
      c10::StorageImpl* storage = tensor->unsafe_storage().unsafeGetStorageImpl();
      held_.push_back({owned(tensor), owned(storage), storage->data(), storage->nbytes()});
    }
  for (const Wrapper& wrapper : gathered.wrappers) {
    Py_INCREF(wrapper.object);
    wrappers_.push_back({THPObjectPtr(wrapper.object), wrapper.local});
  }
}

void Hold::check_unmoved() const {
  for (const auto& [tensor, storage, data, bytes] : held_)
    if (tensor->unsafe_storage().unsafeGetStorageImpl() != storage.get() ||
        storage->data() != data || storage->nbytes() < bytes)
      throw std::runtime_error(
          "fused_optim: a tensor of this step got other memory while the step was prepared, by "
          "another thread or a finalizer. Nothing was changed.");
  if (wrappers_.empty()) return;
  KnownMeshes known;
  const Sharded sharded(known);
  for (const auto& [object, local] : wrappers_)
    if (unpack(sharded.local_of(const_cast<PyObject*>(object.get()))).unsafeGetTensorImpl() !=
        local)
      throw std::runtime_error(
          "fused_optim: a DTensor of this step got another local tensor while the step was "
          "prepared, "
          "by another thread or a finalizer. Nothing was changed.");
}

}  // namespace fused_optim
