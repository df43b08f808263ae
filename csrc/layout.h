// Whether tensors lie in memory alike, and how to walk those that don't.
#pragma once

#include <ATen/core/Tensor.h>

#include "table.h"

namespace fused_optim {

/// Same element at the same offset in both: strides are equal wherever a size is above 1.
bool same_layout(const c10::TensorImpl& a, const c10::TensorImpl& b);

/// Whether all its elements lie within its storage.
bool is_within_storage(const c10::TensorImpl& tensor);

/// Bytes from the first to past the last element.
int64_t span_bytes(const c10::TensorImpl& tensor);

/// The parameter's memory order as a multi-index, no operand strided yet.
StridedLayout layout_of(const c10::TensorImpl& param);

/// Adds an operand of the parameter's shape with strides of its own.
void add_strided(StridedLayout& layout, const c10::TensorImpl& param, int operand,
                 const c10::TensorImpl& tensor);

}  // namespace fused_optim
