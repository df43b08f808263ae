// Whether tensors lie in memory alike, and how to walk those that don't.
#pragma once

#include <ATen/core/Tensor.h>

#include "step/table.h"

namespace fused_optim {

/// Same element at the same offset in both: strides are equal wherever a size is above 1.
bool same_layout(const c10::TensorImpl& a, const c10::TensorImpl& b);

/// Elements from the first to past the last in memory, 0 for an empty tensor.
int64_t span(const c10::TensorImpl& tensor);

struct Dimension {
  int64_t size, stride;
};

/// Dimensions of more than one element, the smallest stride first.
std::vector<Dimension> dims_by_stride(const c10::TensorImpl& tensor);

/// Whether different indices may reach the same element, as in an expanded tensor.
bool may_share_elements(const c10::TensorImpl& tensor);

bool is_complex(const c10::TensorImpl& tensor);

/// Elements, of a complex tensor those of its real view.
int64_t real_numel(const c10::TensorImpl& tensor);

/// The parameter's memory order as a multi-index, no operand strided yet.
StridedLayout layout_of(const c10::TensorImpl& param);

/// Adds an operand of the parameter's shape with strides of its own.
void add_strided(StridedLayout& layout, const c10::TensorImpl& param, int operand,
                 const c10::TensorImpl& tensor);

}  // namespace fused_optim
