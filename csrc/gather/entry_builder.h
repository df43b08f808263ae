// One tensor's way into the table: checked, located in memory, noted as read or written.
#pragma once

#include <ATen/core/Tensor.h>
#include <Python.h>

#include <string>
#include <vector>

#include "gather/gathered.h"
#include "gather/lookup.h"
#include "tensors/checks.h"
#include "tensors/overlap.h"

namespace fused_optim {

class EntryBuilder {
 public:
  /// Writes into `gathered`. Room for about so many tensors.
  EntryBuilder(Gathered& gathered, const char* optimizer, int64_t tensors)
      : where{optimizer, 0, 0}, gathered_(gathered), storages_(tensors) {}

  /// Begins with a parameter: what is created from now on is its state.
  void begin(const c10::TensorImpl& param);

  /// The tensor's first element, all of its elements checked to lie within its storage.
  void* locate(const c10::TensorImpl& tensor, const char* name);

  /// An operand of the entry, of the parameter's shape and any strides.
  void set_operand(TensorEntry& entry, const c10::TensorImpl& param, const c10::TensorImpl& tensor,
                   int operand, const char* name);

  /// The same, noted as written.
  void add_operand(TensorEntry& entry, const c10::TensorImpl& param, const c10::TensorImpl& tensor,
                   int operand, const char* name);

  /// The entry's part in the table of compact ones, made where it has none yet.
  CompactEntry& compact_of(TensorEntry& entry);

  /// An operand in a compact format: a tensor that lies as the parameter does, and what lies beside
  /// it. Noted as written.
  void add_compact(TensorEntry& entry, const c10::TensorImpl& tensor, int operand, Format format,
                   const c10::TensorImpl& side, const char* name, const char* side_name);

  /// The parameter's entry in the list of new states, made where it has none yet.
  NewState& new_state(Device device, const FoundParam& found, const char* name);

  /// A state of one element: its address, noted as written.
  void* add_scalar(const at::Tensor& scalar, const char* name);

  /// Memory that the step uses beside the table's.
  void add_beside_table(const c10::TensorImpl& tensor, bool is_written);

  /// Whether the step would write anything twice, or write and read it, in tensors of different
  /// owners.
  bool has_overlap() const;

  Where where;

 private:
  Gathered& gathered_;
  StorageCheck storages_;
  std::vector<Interval> beside_table_;
  bool has_new_state_ = false;  // the parameter at hand
};

}  // namespace fused_optim
