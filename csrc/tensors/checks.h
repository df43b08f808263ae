// What a tensor must be before a kernel may touch its memory.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "step/table.h"

namespace fused_optim {

/// The name under which errors speak of gradients. They may have any strides; checks know them by
/// this address.
inline constexpr char kGradName[] = "grad";

/// The name under which errors and state dicts speak of averages.
inline constexpr char kAverageName[] = "ema";

/// A parameter's place in the optimizer, for error messages.
struct Where {
  const char* optimizer;
  int64_t group, index;

  /// "fused_optim.Adam: group 0, parameter 1: 'exp_avg'".
  std::string text(const char* tensor) const;

  /// Throws the error that names group, parameter and tensor.
  [[noreturn]] void fail(const char* tensor, const std::string& what) const;
};

/// The format of a tensor, or of its real view. Throws NotFused where no kernel takes it.
Format format_of(const c10::TensorImpl& tensor);

std::string shape_of(const c10::TensorImpl& tensor);

/// Strided memory of its own on a CPU or a CUDA device, no subclass, no lazy conjugate, no
/// transform's wrapper.
bool is_plain(const c10::TensorImpl& tensor);

/// The device of a plain tensor.
Device device_of(const c10::TensorImpl& tensor);

/// Throws unless the parameter is a plain dense tensor on a device that has kernels.
void check_param(const c10::TensorImpl& param);

/// Throws unless the tensor has its parameter's device and shape, and a dtype that it may have.
void check_same_kind(const Where& where, const c10::TensorImpl& param,
                     const c10::TensorImpl& tensor, const char* name);

/// The same, and the gradient or state is one that kernels reach: of any strides if a gradient,
/// else dense.
void check_operand(const Where& where, const c10::TensorImpl& param, const c10::TensorImpl& tensor,
                   const char* name);

/// check_operand but for the dtype, which is another check's: of codes and remainders.
void check_place(const Where& where, const c10::TensorImpl& param, const c10::TensorImpl& tensor,
                 const char* name);

/// Where a tensor with elements begins: read as constant, so that nothing is copied for it.
void* first_element(const c10::TensorImpl& tensor);

bool lies_within_storage(const c10::TensorImpl& tensor);

/// Throws unless every element lies within the tensor's storage, which is its own to write.
void check_storage(const Where& where, const c10::TensorImpl& tensor, const char* name);

}  // namespace fused_optim
