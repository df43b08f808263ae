// From a TensorTable to kernels: one launch for each kind of tensor.
#pragma once

#include <cstdint>
#include <functional>

#include "step/table.h"

namespace fused_optim {

/// What may share a bucket: on CPUs tensors of any formats, for CUDA's kernels of one or of mixed
/// ones.
enum class BucketsOf : uint8_t { EachDevice, Cuda };

/// Calls apply(bucket) for each set of tensors that one launch can serve.
void for_each_bucket(const TensorTable& table, BucketsOf kind,
                     const std::function<void(const Bucket&)>& apply);

/// Throws unless there is a kernel for every entry: before anything is changed.
void prepare(const TensorTable& table);

/// Runs the step that the table describes. Every entry is checked already.
void launch(const TensorTable& table);

}  // namespace fused_optim
