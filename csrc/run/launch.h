// From a TensorTable to kernels: one launch for each kind of tensor.
#pragma once

#include <functional>

#include "step/table.h"

namespace fused_optim {

/// Calls apply(bucket) for each set of tensors that one launch can serve.
void for_each_bucket(const TensorTable& table, const std::function<void(const Bucket&)>& apply);

/// Throws unless there is a kernel for every entry: before anything is changed.
void prepare(const TensorTable& table);

/// Runs the step that the table describes. Every entry is checked already.
void launch(const TensorTable& table);

}  // namespace fused_optim
