#include "gather/gradient_list.h"

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/COW.h>

#include <cmath>

#include "base/errors.h"
#include "cuda/engine.h"
#include "gather/lookup.h"
#include "gather/python_tensor.h"
#include "tensors/checks.h"
#include "tensors/layout.h"
#include "tensors/overlap.h"

namespace fused_optim {
namespace {

void add(Gradients& gradients, StorageCheck& storages, PyObject* object) {
  if (!is_plain_type(object)) throw NotFused("a gradient is of another type than Tensor");
  const c10::TensorImpl& tensor = *unpack(object).unsafeGetTensorImpl();
  if (!is_plain(tensor)) throw NotFused("a gradient is no plain strided tensor");
  if (tensor.is_cuda() && !cuda::is_built()) throw NotFused("built without CUDA");
  if (!tensor.is_non_overlapping_and_dense()) throw NotFused("a gradient is not dense in memory");
  if (tensor.requires_grad() && c10::GradMode::is_enabled())
    throw NotFused("a gradient takes part in autograd");
  const Format dtype = format_of(tensor);
  if (tensor.numel() == 0) return;
  if (!lies_within_storage(tensor)) throw NotFused("a gradient reaches beyond its storage");
  if (c10::impl::cow::is_cow_data_ptr(tensor.unsafe_storage().data_ptr()))
    throw NotFused("a gradient shares its memory until it is written");
  storages.add(*tensor.unsafe_storage().unsafeGetStorageImpl());
  gradients.add(first_element(tensor), real_numel(tensor), dtype, device_of(tensor));
}

bool do_overlap(const Gradients& gradients) {
  std::vector<Interval> intervals;
  for (const Gradient& gradient : gradients.entries)
    intervals.emplace_back(gradient.data, gradient.numel * item_size(gradient.dtype), true);
  return do_overlap(std::move(intervals));
}

}  // namespace

Gradients read_gradients(PyObject* list, bool are_written) {
  if (!PyList_Check(list)) throw NotFused("gradients are in no list");
  Gradients gradients;
  gradients.entries.reserve(PyList_GET_SIZE(list));
  StorageCheck storages(PyList_GET_SIZE(list));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); ++i)
    add(gradients, storages, PyList_GET_ITEM(list, i));
  if (are_written && storages.may_overlap() && do_overlap(gradients))
    throw NotFused("gradients overlap in memory");
  return gradients;
}

NormType read_norm_type(double norm_type, PyObject* gradients) {
  if (norm_type == 2.0) return NormType::L2;
  if (norm_type != 1.0 && norm_type != INFINITY) throw NotFused("no kernel for this norm");
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(gradients); ++i)
    if (is_complex(*unpack(PyList_GET_ITEM(gradients, i)).unsafeGetTensorImpl()))
      throw NotFused("no kernel for this norm of complex gradients");
  return norm_type == 1.0 ? NormType::L1 : NormType::Inf;
}

}  // namespace fused_optim
