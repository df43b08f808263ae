#include "torch_calls.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/zeros.h>
#include <c10/util/MaybeOwned.h>
#include <torch/csrc/autograd/python_variable.h>

#include <type_traits>

namespace fused_optim {

// A tensor, or in older versions of torch one that may be borrowed: then a flag comes before it.
using Held = decltype(THPVariable::cdata);
static_assert(std::is_same_v<Held, at::Tensor> || std::is_same_v<Held, c10::MaybeOwned<at::Tensor>>,
              "this version of torch holds tensors in another way");
const ptrdiff_t kTensorOffset = offsetof(THPVariable, cdata) + sizeof(Held) - sizeof(at::Tensor);

PyObject* object_of(const at::Tensor& tensor) {
  return THPVariable_Wrap(tensor);
}

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::empty(sizes, options);
}

at::Tensor zeros(at::IntArrayRef sizes, const at::TensorOptions& options) {
  return at::zeros(sizes, options);
}

at::Tensor full(at::IntArrayRef sizes, const at::Scalar& value, const at::TensorOptions& options) {
  return at::full(sizes, value, options);
}

at::Tensor empty_like(const at::Tensor& tensor) {
  return at::empty_like(tensor, {}, at::MemoryFormat::Preserve);
}

at::Tensor full_like(const at::Tensor& tensor, const at::Scalar& value) {
  return at::full_like(tensor, value, {}, {}, {}, {}, at::MemoryFormat::Preserve);
}

}  // namespace fused_optim
