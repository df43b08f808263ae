// One number in memory of a dtype that the run knows.
#pragma once

#include "storage/registry.h"

namespace fused_optim {

FUSED_OPTIM_INLINE double load_scalar(const void* data, Format dtype) {
  switch (dtype) {
    case Format::Float32:
      return *static_cast<const float*>(data);
    case Format::Float64:
      return *static_cast<const double*>(data);
    case Format::BFloat16:
      return to_opmath(*static_cast<const bfloat16*>(data));
    case Format::Float16:
      return to_opmath(*static_cast<const float16*>(data));
  }
  return 0;
}

FUSED_OPTIM_INLINE void store_scalar(void* data, Format dtype, double value) {
  const auto single = static_cast<float>(value);
  switch (dtype) {
    case Format::Float32:
      *static_cast<float*>(data) = single;
      break;
    case Format::Float64:
      *static_cast<double*>(data) = value;
      break;
    case Format::BFloat16:
      *static_cast<bfloat16*>(data) = to_storage<bfloat16>(single);
      break;
    case Format::Float16:
      *static_cast<float16*>(data) = to_storage<float16>(single);
      break;
  }
}

}  // namespace fused_optim
