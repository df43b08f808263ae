#include "gather/gradient.h"

#include <ATen/MemoryOverlap.h>
#include <c10/core/impl/COW.h>

#include "base/errors.h"

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

}  // namespace

void add_grad(EntryBuilder& builder, Gathered& result, TensorEntry& entry, const FoundParam& found,
              const StepOptions& options, Gradients& for_norm) {
  const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
  const c10::TensorImpl* grad = found.grad->unsafeGetTensorImpl();
  result.read.push_back(const_cast<c10::TensorImpl*>(grad));
  if (options.zero_grads) {
    check_is_zeroable(builder.where, *grad);
    result.written.push_back(const_cast<c10::TensorImpl*>(grad));
  }
  const bool must_be_dense = options.zero_grads || options.needs_norm();
  if (must_be_dense && !grad->is_non_overlapping_and_dense()) {
    builder.locate(*grad, kGradName);
    result.copied_grads.push_back(found.grad->detach());
    result.owned.push_back(found.grad->contiguous());
    grad = result.owned.back().unsafeGetTensorImpl();
  }
  builder.set_operand(entry, param, *grad, kGrad, kGradName);
  if (options.needs_norm())
    for_norm.add(entry.operands[kGrad], entry.numel, entry.formats[kGrad], entry.device);
}

}  // namespace fused_optim
