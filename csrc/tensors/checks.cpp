#include "tensors/checks.h"

#include <c10/core/InferenceMode.h>
#include <c10/core/impl/COW.h>

#include "base/errors.h"
#include "cuda/engine.h"
#include "tensors/layout.h"

namespace fused_optim {
namespace {

/// Anything but an ordinary tensor shows in the dispatch keys.
template <c10::DispatchKey dense, c10::DispatchKey autograd, c10::DispatchKey autocast>
bool has_ordinary_keys(c10::DispatchKeySet keys) {
  constexpr c10::DispatchKeySet inplace(c10::DispatchKey::ADInplaceOrView);
  constexpr c10::DispatchKeySet ordinary =
      inplace | c10::DispatchKeySet(autograd) | c10::DispatchKeySet(autocast);
  // Inference tensors lack ADInplaceOrView; they may be written in inference mode alone.
  return keys - ordinary == c10::DispatchKeySet(dense) &&
         (keys.has_all(inplace) || c10::InferenceMode::is_enabled());
}

}  // namespace

void Where::fail(const char* tensor, const std::string& what) const {
  throw std::runtime_error(text(tensor) + " " + what + ". Nothing was changed.");
}

std::string Where::text(const char* tensor) const {
  return std::string("fused_optim.") + optimizer + ": group " + std::to_string(group) +
         ", parameter " + std::to_string(index) + ": '" + tensor + "'";
}

Format format_of(const c10::TensorImpl& tensor) {
  switch (c10::toRealValueType(c10::typeMetaToScalarType(tensor.dtype()))) {
    case c10::ScalarType::Float:
      return Format::Float32;
    case c10::ScalarType::Double:
      return Format::Float64;
    case c10::ScalarType::BFloat16:
      return Format::BFloat16;
    case c10::ScalarType::Half:
      return Format::Float16;
    default:
      throw NotFused(std::string("no kernel takes dtype ") +
                     c10::toString(c10::typeMetaToScalarType(tensor.dtype())));
  }
}

std::string shape_of(const c10::TensorImpl& tensor) {
  std::string text = "[";
  for (int64_t size : tensor.sizes()) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

bool is_plain(const c10::TensorImpl& tensor) {
  using Key = c10::DispatchKey;
  const c10::DispatchKeySet keys = tensor.key_set();
  // `p.data = fake` leaves the keys as they were: the device alone shows that there is no memory.
  if (has_ordinary_keys<Key::CPU, Key::AutogradCPU, Key::AutocastCPU>(keys))
    return tensor.device().is_cpu();
  return has_ordinary_keys<Key::CUDA, Key::AutogradCUDA, Key::AutocastCUDA>(keys) &&
         tensor.device().is_cuda() && tensor.device().has_index();
}

Device device_of(const c10::TensorImpl& tensor) {
  if (tensor.is_cpu()) return {DeviceKind::CPU, 0};
  return {DeviceKind::CUDA, tensor.device().index()};
}

void check_param(const c10::TensorImpl& param) {
  if (!is_plain(param)) {
    if (param.is_meta()) throw NotFusedAsExpected("a parameter is on the meta device");
    if (!param.is_cpu() && !param.is_cuda())
      throw NotFused("no kernel for device " + param.device().str());
    throw NotFused("a parameter is no plain strided tensor");
  }
  if (param.is_cuda() && !cuda::is_built())
    throw NotFused("no kernel for device " + param.device().str() + ": built without CUDA");
  if (!param.is_non_overlapping_and_dense()) throw NotFused("a parameter is not dense in memory");
}

namespace {

std::string name_of_dtype(const c10::TensorImpl& tensor) {
  return c10::toString(c10::typeMetaToScalarType(tensor.dtype()));
}

/// Double belongs to parameters in double alone: beside others nobody means it.
bool is_dtype_for(const c10::TensorImpl& param, const c10::TensorImpl& tensor, const char* name) {
  const c10::ScalarType own = c10::typeMetaToScalarType(param.dtype());
  const c10::ScalarType other = c10::typeMetaToScalarType(tensor.dtype());
  if (c10::isComplexType(own) != c10::isComplexType(other)) return false;
  switch (c10::toRealValueType(other)) {
    case c10::ScalarType::Float:
    case c10::ScalarType::BFloat16:
    case c10::ScalarType::Half:
      return c10::isFloatingType(own) || c10::isComplexType(own);
    case c10::ScalarType::Double:
      if (name == kGradName) throw NotFused("a gradient is in double, its parameter is not");
      return false;
    default:
      return false;
  }
}

}  // namespace

namespace {

inline void check_device(const Where& where, const c10::TensorImpl& param,
                         const c10::TensorImpl& tensor, const char* name) {
  if (tensor.device() != param.device())
    where.fail(name,
               "is on " + tensor.device().str() + ", the parameter on " + param.device().str());
}

inline void check_shape(const Where& where, const c10::TensorImpl& param,
                        const c10::TensorImpl& tensor, const char* name) {
  if (tensor.sizes() != param.sizes())
    where.fail(name, "has shape " + shape_of(tensor) + ", the parameter " + shape_of(param));
}

}  // namespace

void check_same_kind(const Where& where, const c10::TensorImpl& param,
                     const c10::TensorImpl& tensor, const char* name) {
  check_device(where, param, tensor, name);
  if (tensor.dtype() != param.dtype() && !is_dtype_for(param, tensor, name))
    where.fail(name,
               "has dtype " + name_of_dtype(tensor) + ", the parameter " + name_of_dtype(param));
  check_shape(where, param, tensor, name);
}

namespace {

inline void check_reachable(const c10::TensorImpl& tensor, const char* name) {
  if (!is_plain(tensor)) throw NotFused(std::string(name) + " is no plain strided tensor");
  if (name != kGradName && !tensor.is_non_overlapping_and_dense())
    throw NotFused(std::string(name) + " is not dense in memory");
}

}  // namespace

void check_operand(const Where& where, const c10::TensorImpl& param, const c10::TensorImpl& tensor,
                   const char* name) {
  check_same_kind(where, param, tensor, name);
  check_reachable(tensor, name);
}

void check_place(const Where& where, const c10::TensorImpl& param, const c10::TensorImpl& tensor,
                 const char* name) {
  check_device(where, param, tensor, name);
  check_shape(where, param, tensor, name);
  check_reachable(tensor, name);
}

void* first_element(const c10::TensorImpl& tensor) {
  const auto offset = tensor.storage_offset() * static_cast<int64_t>(tensor.dtype().itemsize());
  return static_cast<char*>(const_cast<void*>(tensor.unsafe_storage().data())) + offset;
}

bool lies_within_storage(const c10::TensorImpl& tensor) {
  const auto item = static_cast<int64_t>(tensor.dtype().itemsize());
  const int64_t end = tensor.storage_offset() + span(tensor);
  return static_cast<uint64_t>(end * item) <= tensor.unsafe_storage().nbytes();
}

void check_storage(const Where& where, const c10::TensorImpl& tensor, const char* name) {
  if (!lies_within_storage(tensor)) where.fail(name, "reaches beyond its storage");
  const c10::StorageImpl& storage = *tensor.unsafe_storage().unsafeGetStorageImpl();
  if (name != kGradName && c10::impl::cow::is_cow_data_ptr(storage.data_ptr()))
    throw NotFused(std::string(name) + " shares its memory until it is written");
}

}  // namespace fused_optim
