// Owns what a step uses while Python code may run: other threads, finalizers, signal handlers.
#pragma once

#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include <vector>

#include "gather/gather.h"

namespace fused_optim {

class Hold {
 public:
  /// All tensors that were gathered, with the memory that they had then: `p.data = ...` gives a
  /// tensor another storage, and the last owner of the first would free it.
  explicit Hold(const Gathered& gathered);

  /// Throws unless each tensor still has that memory.
  void check_unmoved() const;

 private:
  struct Held {
    c10::intrusive_ptr<c10::TensorImpl> tensor;
    c10::intrusive_ptr<c10::StorageImpl> storage;
    const void* data;
    size_t bytes;
  };

  std::vector<Held> held_;
  std::vector<std::pair<THPObjectPtr, const c10::TensorImpl*>> wrappers_;
};

}  // namespace fused_optim
