#include "gather/local_state.h"

#include "gather/one_element_states.h"
#include "gather/python_tensor.h"

namespace fused_optim {

const at::Tensor& local_state(const Where& where, Sharded& sharded, Gathered& gathered,
                              const FoundParam& found, PyObject* value, const char* name) {
  if (value == nullptr || is_plain_type(value) || !sharded.is_dtensor(value)) {
    if (found.spec != nullptr && value != nullptr && is_plain_type(value))
      where.fail(name, "is no DTensor, the parameter is placed as " + placement_text(found.spec));
    return state_tensor(where, value, name);
  }
  if (found.spec == nullptr) where.fail(name, "is a DTensor, the parameter is none");
  PyObject* spec = sharded.spec_of(value);
  if (!sharded.are_placed_alike(found.spec, spec))
    where.fail(name, "is placed as " + placement_text(spec) + ", the parameter as " +
                         placement_text(found.spec));
  c10::TensorImpl* state = unpack(value).unsafeGetTensorImpl();
  const c10::TensorImpl& param = *unpack(found.object).unsafeGetTensorImpl();
  if (state->sizes() != param.sizes())
    where.fail(name, "has shape " + shape_of(*state) + ", the parameter " + shape_of(param));
  const at::Tensor& local = unpack(sharded.local_of(value));
  gathered.wrappers.push_back({value, local.unsafeGetTensorImpl()});
  return local;
}

}  // namespace fused_optim
