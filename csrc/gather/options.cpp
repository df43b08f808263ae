#include "gather/options.h"

#include <ATen/MemoryOverlap.h>
#include <c10/core/impl/COW.h>

#include "base/errors.h"
#include "gather/one_element_states.h"
#include "gather/python_dict.h"
#include "tensors/new_tensors.h"

namespace fused_optim {
namespace {

/// Throws unless torch, too, could write zero to each element and to nothing else.
void check_is_zeroable(const Where& where, const c10::TensorImpl& grad) {
  if (grad.requires_grad()) throw NotFused("a gradient to be zeroed takes part in autograd");
  if (at::has_internal_overlap(const_cast<c10::TensorImpl*>(&grad)) == at::MemOverlap::Yes)
    where.fail(kGradName, "has elements that share memory, so that it can't be zeroed");
  if (grad.storage() && c10::impl::cow::is_cow_data_ptr(grad.unsafe_storage().data_ptr()))
    throw NotFused("a gradient to be zeroed shares its memory until it is written");
}

/// Compares keys without a lookup, which could run the `__eq__` of one.
bool has_average(PyObject* state) {
  PyObject *key, *value;
  for (Py_ssize_t position = 0; PyDict_Next(state, &position, &key, &value);)
    if (key == average_key() ||
        (PyUnicode_CheckExact(key) && PyUnicode_Compare(key, average_key()) == 0))
      return true;
  return false;
}

/// Whether any parameter has an average.
bool has_averages(PyObject* states) {
  PyObject *param, *state;
  for (Py_ssize_t position = 0; PyDict_Next(states, &position, &param, &state);)
    if (PyDict_Check(state) && has_average(state)) return true;
  return false;
}

}  // namespace

void add_grad(EntryBuilder& builder, TensorEntry& entry, const FoundParam& found,
              const StepOptions& options) {
  const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
  const c10::TensorImpl* grad = found.grad;
  Gathered& result = builder.result;
  result.read.push_back(const_cast<c10::TensorImpl*>(grad));
  if (options.zero_grads) {
    check_is_zeroable(builder.where, *grad);
    result.written.push_back(const_cast<c10::TensorImpl*>(grad));
  }
  const bool must_be_dense = options.zero_grads || options.needs_norm();
  if (must_be_dense && !grad->is_non_overlapping_and_dense()) {
    builder.locate(*grad, kGradName);
    result.copied_grads.push_back(found.tensor->grad().detach());
    result.owned.push_back(found.tensor->grad().contiguous());
    grad = result.owned.back().unsafeGetTensorImpl();
  }
  builder.set_operand(entry, param, *grad, kGrad, kGradName);
  if (options.needs_norm())
    result.gradients.add(entry.operands[kGrad], entry.numel, entry.dtype, entry.device);
}

void add_average(EntryBuilder& builder, TensorEntry& entry, const FoundParam& found,
                 PyObject* states) {
  if (found.average != nullptr)
    return builder.add_state(entry, found, found.average, kAverage, kAverageName);
  Gathered& result = builder.result;
  const at::Tensor param = found.tensor->detach();
  at::Tensor& average = builder.new_state(entry, found, kAverageName).add(average_key());
  // Whatever keeps the step from its end, it is the average of something.
  average = empty_like(param);
  average.copy_(param);
  if (result.first_averages.empty() && has_averages(states)) {
    builder.add_operand(entry, *param.unsafeGetTensorImpl(), *average.unsafeGetTensorImpl(),
                        kAverage, kAverageName);
  } else {
    result.first_averages.push_back({average, param});
    result.host_decides = true;
  }
}

void add_average_alone(EntryBuilder& builder, const FoundParam& found) {
  const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
  const at::Tensor& average = state_tensor(builder.where, found.average, kAverageName);
  check_param(param);
  check_operand(builder.where, param, *average.unsafeGetTensorImpl(), kAverageName);
  builder.locate(param, "param");
  builder.locate(*average.unsafeGetTensorImpl(), kAverageName);
  builder.add_beside_table(param, false);
  builder.add_beside_table(*average.unsafeGetTensorImpl(), true);
  // Aliases, so that `.data = ...` on either changes nothing for this step.
  builder.result.averages_alone.push_back({average.detach(), found.tensor->detach()});
  builder.result.beside_table.push_back(const_cast<c10::TensorImpl*>(&param));
  builder.result.beside_table.push_back(average.unsafeGetTensorImpl());
  builder.result.host_decides = true;
}

}  // namespace fused_optim
