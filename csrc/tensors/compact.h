// Whole tensors between float and compact formats: as checkpoints have them, and as they are kept.
#pragma once

#include <ATen/core/Tensor.h>

#include "rules/rule.h"

namespace fused_optim {

/// Codes of the values' shape and strides, and the scales of their blocks in memory order. The
/// dtype of codes tells the kind: int8 of first moments, uint8 of second ones.
struct Coded {
  at::Tensor codes, scales;
};

at::ScalarType codes_dtype(Moment moment);

int64_t num_scales(int64_t numel);

/// Of zeros, for a tensor that is dense in memory.
Coded zeros_coded(const at::Tensor& like, Moment moment);

/// Rounded to nearest, so that what was decoded gets values that it had. `values`: dense in memory,
/// of a floating dtype. On other devices than the CPU by way of the host, which waits.
Coded encoded(const at::Tensor& values, Moment moment);

/// In float32, exactly; of the codes' shape and strides.
at::Tensor decoded(const at::Tensor& codes, const at::Tensor& scales);

/// A remainder as an optimizer has it, int16 or int8 on the host, from one of floats as a state
/// dict has it: in units of float32's last place. Undefined where it holds anything else.
at::Tensor remainder_of_floats(const at::Tensor& saved, at::ScalarType dtype);

/// The float32 masters of a bfloat16 parameter and its remainder, of the same shape.
at::Tensor joined(const at::Tensor& param, const at::Tensor& remainder);

}  // namespace fused_optim
