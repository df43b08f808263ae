// New tensors. The headers of torch's functions for them cost a compiler three seconds:
// new_tensors.cpp alone includes them.
#pragma once

#include <ATen/core/Tensor.h>

namespace fused_optim {

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options);
at::Tensor full(at::IntArrayRef sizes, const at::Scalar& value, const at::TensorOptions& options);

/// Of the tensor's shape and device, and of its strides where it is dense.
at::Tensor empty_like(const at::Tensor& tensor, at::ScalarType dtype);
at::Tensor full_like(const at::Tensor& tensor, const at::Scalar& value, at::ScalarType dtype);

}  // namespace fused_optim
