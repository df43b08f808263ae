#include "gather/python_tensor.h"

#include <c10/util/MaybeOwned.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstddef>
#include <type_traits>

namespace fused_optim {

// Up to torch 2.10 there is a flag before it.
using Held = decltype(THPVariable::cdata);
static_assert(std::is_same_v<Held, at::Tensor> ||
              (std::is_same_v<Held, c10::MaybeOwned<at::Tensor>> &&
               sizeof(Held) == sizeof(void*) + sizeof(at::Tensor)));
const Py_ssize_t kTensorOffset = offsetof(THPVariable, cdata) + sizeof(Held) - sizeof(at::Tensor);

PyObject* object_of(const at::Tensor& tensor) {
  return THPVariable_Wrap(tensor);
}

}  // namespace fused_optim
