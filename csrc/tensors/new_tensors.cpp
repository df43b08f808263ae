#include "tensors/new_tensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>

namespace fused_optim {

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}

at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::zeros(sizes, options);
}

at::Tensor full(at::IntArrayRef sizes, const at::Scalar& value, const at::TensorOptions& options) {
  return at::full(sizes, value, options);
}

at::Tensor empty_like(const at::Tensor& tensor, at::ScalarType dtype) {
  return at::empty_like(tensor, dtype, {}, {}, {}, at::MemoryFormat::Preserve);
}

at::Tensor full_like(const at::Tensor& tensor, const at::Scalar& value, at::ScalarType dtype) {
  return at::full_like(tensor, value, dtype, {}, {}, {}, at::MemoryFormat::Preserve);
}

}  // namespace fused_optim
