#include "tensors/layout.h"

#include <algorithm>

namespace fused_optim {
namespace {

/// Dimensions of more than one element, by falling stride of the parameter.
std::vector<int64_t> memory_order(const c10::TensorImpl& param) {
  std::vector<int64_t> dims;
  for (int64_t dim = 0; dim < param.dim(); ++dim)
    if (param.sizes()[dim] > 1) dims.push_back(dim);
  std::stable_sort(dims.begin(), dims.end(),
                   [&](int64_t a, int64_t b) { return param.strides()[a] > param.strides()[b]; });
  return dims;
}

}  // namespace

bool same_layout(const c10::TensorImpl& a, const c10::TensorImpl& b) {
  if (a.is_contiguous() && b.is_contiguous()) return true;
  for (int64_t dim = 0; dim < a.dim(); ++dim)
    if (a.sizes()[dim] > 1 && a.strides()[dim] != b.strides()[dim]) return false;
  return true;
}

int64_t span(const c10::TensorImpl& tensor) {
  if (tensor.is_non_overlapping_and_dense() || tensor.numel() == 0) return tensor.numel();
  int64_t last = 0;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim)
    last += (tensor.sizes()[dim] - 1) * tensor.strides()[dim];
  return last + 1;
}

std::vector<Dimension> dims_by_stride(const c10::TensorImpl& tensor) {
  std::vector<Dimension> dims;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim)
    if (tensor.sizes()[dim] > 1) dims.push_back({tensor.sizes()[dim], tensor.strides()[dim]});
  std::ranges::sort(dims, {}, &Dimension::stride);
  return dims;
}

bool may_share_elements(const c10::TensorImpl& tensor) {
  int64_t reach = 0;
  for (const auto& [size, stride] : dims_by_stride(tensor)) {
    if (stride <= reach) return tensor.numel() > 0;
    reach += (size - 1) * stride;
  }
  return false;
}

bool is_complex(const c10::TensorImpl& tensor) {
  return c10::isComplexType(c10::typeMetaToScalarType(tensor.dtype()));
}

int64_t real_numel(const c10::TensorImpl& tensor) {
  return tensor.numel() * (is_complex(tensor) ? 2 : 1);
}

StridedLayout layout_of(const c10::TensorImpl& param) {
  StridedLayout layout;
  for (int64_t dim : memory_order(param)) layout.sizes.push_back(param.sizes()[dim]);
  // A complex element is two real ones: one more, innermost dimension.
  if (is_complex(param)) layout.sizes.push_back(2);
  if (layout.sizes.empty()) layout.sizes.push_back(1);
  return layout;
}

void add_strided(StridedLayout& layout, const c10::TensorImpl& param, int operand,
                 const c10::TensorImpl& tensor) {
  std::vector<int64_t>& strides = layout.strides[operand];
  const int64_t reals = is_complex(param) ? 2 : 1;
  for (int64_t dim : memory_order(param)) strides.push_back(tensor.strides()[dim] * reals);
  if (reals == 2) strides.push_back(1);
  if (strides.empty()) strides.push_back(1);
}

}  // namespace fused_optim
