// One number in memory of a format that the run knows.
#pragma once

#include "storage/registry.h"

namespace fused_optim {

FUSED_OPTIM_INLINE double load_scalar(const void* data, Format format) {
  return with_storage(format, [=]<class Storage>(Storage) {
    return static_cast<double>(to_opmath(*static_cast<const Storage*>(data)));
  });
}

FUSED_OPTIM_INLINE void store_scalar(void* data, Format format, double value) {
  with_storage(format, [=]<class Storage>(Storage) {
    *static_cast<Storage*>(data) = to_storage<Storage>(static_cast<opmath_t<Storage>>(value));
  });
}

}  // namespace fused_optim
