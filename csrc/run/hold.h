// Owns what a step uses while Python code may run: other threads, finalizers, signal handlers.
#pragma once

#include <c10/core/StorageImpl.h>
#include <c10/core/TensorImpl.h>

#include <vector>

#include "gather/gather.h"

namespace fused_optim {

class Hold {
 public:
  /// Of what was gathered.
  enum class What : uint8_t {
    /// The tensors, and which memory they have. Enough where other code runs before the last check
    /// alone: a tensor that still has its memory then has owned it, or memory in the same place.
    Tensors,
    /// The memory, too, for other code that runs while it is read or written: `p.data = ...` gives
    /// a tensor another storage, and the last owner of the first would free it.
    TensorsAndMemory
  };
  Hold(const Gathered& gathered, What what);

  /// Throws unless each tensor still has the memory that it had when it was gathered.
  void check_unmoved() const;

 private:
  struct Held {
    c10::intrusive_ptr<c10::TensorImpl> tensor;
    const c10::StorageImpl* storage;
    const void* data;
    size_t bytes;
  };

  std::vector<Held> held_;
  std::vector<c10::intrusive_ptr<c10::StorageImpl>> memory_;
  std::vector<std::pair<THPObjectPtr, const c10::TensorImpl*>> wrappers_;
};

}  // namespace fused_optim
