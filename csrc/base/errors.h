// What a step can end with beside being done: given to torch's own, or an error of Python's.
#pragma once

#include <stdexcept>

namespace fused_optim {

/// This step is not for the kernels, for the reason given; torch's own step can still do it. Users
/// are told of it.
struct NotFused : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The same where nobody expects kernels, as torch has none either, or looks on at the operations.
struct NotFusedAsExpected : NotFused {
  using NotFused::NotFused;
};

/// A Python error is set.
struct PythonError {};

}  // namespace fused_optim
