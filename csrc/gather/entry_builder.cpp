#include "gather/entry_builder.h"

#include "cuda/engine.h"
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
  const bool is_params = operand != kParam && tensor.dtype() == param.dtype();
  entry.formats[operand] = is_params ? entry.formats[kParam] : format_of(tensor);
  if (operand == kParam || same_layout(param, tensor)) return;
  if (entry.strided < 0) {
    entry.strided = static_cast<int32_t>(gathered_.table.strided.size());
    gathered_.table.strided.push_back(layout_of(param));
  }
  add_strided(gathered_.table.strided[entry.strided], param, operand, tensor);
}

void EntryBuilder::add_operand(TensorEntry& entry, const c10::TensorImpl& param,
                               const c10::TensorImpl& tensor, int operand, const char* name) {
  gathered_.written.push_back(const_cast<c10::TensorImpl*>(&tensor));
  set_operand(entry, param, tensor, operand, name);
}

CompactEntry& EntryBuilder::compact_of(TensorEntry& entry) {
  std::vector<CompactEntry>& all = gathered_.table.compact;
  if (entry.compact < 0) {
    entry.compact = static_cast<int32_t>(all.size());
    all.emplace_back();
  }
  return all[entry.compact];
}

void EntryBuilder::add_compact(TensorEntry& entry, const c10::TensorImpl& tensor, int operand,
                               Format format, const c10::TensorImpl& side, const char* name,
                               const char* side_name) {
  // The parameter is in the list already.
  if (operand != kParam) {
    gathered_.written.push_back(const_cast<c10::TensorImpl*>(&tensor));
    entry.operands[operand] = locate(tensor, name);
  }
  entry.formats[operand] = format;
  gathered_.written.push_back(const_cast<c10::TensorImpl*>(&side));
  compact_of(entry).sides[operand] = locate(side, side_name);
  add_beside_table(side, true);
}

NewState& EntryBuilder::new_state(Device device, const FoundParam& found, const char* name) {
  if (device.kind == DeviceKind::CUDA && cuda::is_capturing(device))
    where.fail(name,
               "has to be created, but a CUDA graph is being captured and each replay would "
               "create it anew: call step() once before the capture");
  if (has_new_state_) return gathered_.new_states.back();
  has_new_state_ = true;
  // One dict that is the state of two parameters would get the second one's tensors alone.
  if (found.state != nullptr) storages_.add_owner(found.state);
  gathered_.new_states.emplace_back(found.object, found.state, found.spec != nullptr);
  return gathered_.new_states.back();
}

void* EntryBuilder::add_scalar(const at::Tensor& scalar, const char* name) {
  c10::TensorImpl* tensor = scalar.unsafeGetTensorImpl();
  gathered_.written.push_back(tensor);
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
  std::vector<Interval> intervals = intervals_of(gathered_.table);
  intervals.insert(intervals.end(), beside_table_.begin(), beside_table_.end());
  return do_overlap(std::move(intervals));
}

}  // namespace fused_optim
