#include "gather/entry_builder.h"

#include <set>

#include "cuda/engine.h"
#include "gather/one_element_states.h"
#include "tensors/layout.h"

namespace fused_optim {

void EntryBuilder::begin(const c10::TensorImpl& param) {
  has_new_state_ = false;
  if (param.numel() == 0) storages_.add_owner(&param);
}

void* EntryBuilder::locate(const c10::TensorImpl& tensor, const char* name) {
  check_storage(where, tensor, name);
  if (tensor.numel() == 0) return nullptr;
  storages_.add(*tensor.unsafe_storage().unsafeGetStorageImpl());
  return first_element(tensor);
}

void EntryBuilder::set_operand(TensorEntry& entry, const c10::TensorImpl& param,
                               const c10::TensorImpl& tensor, int operand, const char* name) {
  entry.operands[operand] = locate(tensor, name);
  if (operand == kParam || same_layout(param, tensor)) return;
  if (entry.strided < 0) {
    entry.strided = static_cast<int32_t>(result.table.strided.size());
    result.table.strided.push_back(layout_of(param));
  }
  add_strided(result.table.strided[entry.strided], param, operand, tensor);
}

void EntryBuilder::add_operand(TensorEntry& entry, const c10::TensorImpl& param,
                               const c10::TensorImpl& tensor, int operand, const char* name) {
  result.written.push_back(const_cast<c10::TensorImpl*>(&tensor));
  set_operand(entry, param, tensor, operand, name);
}

void EntryBuilder::add_state(TensorEntry& entry, const FoundParam& found, PyObject* value,
                             int operand, const char* name) {
  const c10::TensorImpl& param = *found.tensor->unsafeGetTensorImpl();
  const c10::TensorImpl& state = *state_tensor(where, value, name).unsafeGetTensorImpl();
  check_operand(where, param, state, name);
  add_operand(entry, param, state, operand, name);
}

NewState& EntryBuilder::new_state(const TensorEntry& entry, const FoundParam& found,
                                  const char* name) {
  if (entry.device.kind == DeviceKind::CUDA && cuda::is_capturing(entry.device))
    where.fail(name,
               "has to be created, but a CUDA graph is being captured and each replay would "
               "create it anew: call step() once before the capture");
  if (has_new_state_) return result.new_states.back();
  has_new_state_ = true;
  // One dict that is the state of two parameters would get the second one's tensors alone.
  if (found.state != nullptr) storages_.add_owner(found.state);
  result.new_states.emplace_back(found.object, found.state);
  return result.new_states.back();
}

void* EntryBuilder::add_scalar(const at::Tensor& scalar, const char* name) {
  c10::TensorImpl* tensor = scalar.unsafeGetTensorImpl();
  result.written.push_back(tensor);
  return locate(*tensor, name);
}

void EntryBuilder::add_beside_table(const c10::TensorImpl& tensor, bool is_written) {
  if (tensor.numel() == 0) return;
  const auto bytes = span(tensor) * static_cast<int64_t>(tensor.dtype().itemsize());
  beside_table_.emplace_back(first_element(tensor), bytes, is_written);
}

bool EntryBuilder::has_overlap() const {
  if (storages_.is_owner_repeated() || !storages_.may_overlap())
    return storages_.is_owner_repeated();
  std::vector<Interval> intervals = intervals_of(result.table);
  intervals.insert(intervals.end(), beside_table_.begin(), beside_table_.end());
  // A step that parameters share is advanced once for each, one after the other: no overlap.
  std::set<std::pair<const void*, DType>> steps;
  for (const HostStep& step : result.steps)
    if (steps.emplace(step.data, step.dtype).second)
      intervals.emplace_back(step.data, item_size(step.dtype), true);
  return do_overlap(std::move(intervals));
}

}  // namespace fused_optim
