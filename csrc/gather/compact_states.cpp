#include "gather/compact_states.h"

#include <algorithm>

#include "base/errors.h"
#include "gather/local_state.h"
#include "gather/one_element_states.h"
#include "gather/python_tensor.h"
#include "storage/one_element.h"
#include "tensors/checks.h"
#include "tensors/compact.h"
#include "tensors/layout.h"
#include "tensors/new_tensors.h"

namespace fused_optim {
namespace {

Format codes_format(Moment moment) {
  return moment == Moment::First ? Format::SignedCodes : Format::UnsignedCodes;
}

constexpr int kStepRow = 0;  // of rules that count steps

std::string dtype_text(const at::Tensor& tensor) {
  return c10::toString(tensor.scalar_type());
}

}  // namespace

std::optional<at::ScalarType> CompactStates::dtype_of(const AtHand& param, int row) const {
  const std::optional<at::ScalarType>& asked = param.group.dtypes[row];
  if (!asked) return has_master(param) ? std::optional(at::kFloat) : std::nullopt;
  if (*asked != kCodes) return asked;
  check_takes_codes(param, row);
  // Of all ranks' parts together, so that it doesn't depend on their number.
  const int64_t numel = unpack(param.found.object).unsafeGetTensorImpl()->numel();
  return numel < kFewestInCodes ? at::kFloat : kCodes;
}

at::Tensor CompactStates::as_begun(const AtHand& param, const at::Tensor& state,
                                   std::optional<at::ScalarType> dtype, int row) {
  const StateSpec& spec = rows_.rows[row].spec;
  if (spec.begins_as == nullptr || !rule_.has_step || !has_master(param) ||
      state.scalar_type() != at::kBFloat16 || dtype == at::kBFloat16)
    return {};
  check_operand(builder_.where, param.impl(), *state.unsafeGetTensorImpl(), spec.name);
  builder_.locate(*state.unsafeGetTensorImpl(), spec.name);
  const at::Tensor& step = unpack(param.found.values[kStepRow]);  // checked, as it comes first
  const Format format = format_of(*step.unsafeGetTensorImpl());
  if (step.is_cpu() && load_scalar(step.const_data_ptr(), format) != 0) return {};
  const double first = value_of(param.group, rule_, spec.begins_as);
  at::Tensor values = state.detach().to(at::kFloat);
  at::Tensor has_begun = values.eq(static_cast<float>(c10::BFloat16(static_cast<float>(first))));
  // A device is not waited for.
  if (!step.is_cpu()) has_begun.logical_and_(step.detach().to(state.device()).eq(0));
  return values.masked_fill_(has_begun, first);
}

/// Codes are computed in float, and counted as the parameter's elements are; and some states need
/// more bits where an option is on.
void CompactStates::check_takes_codes(const AtHand& param, int row) const {
  const at::ScalarType own = param.tensor().scalar_type();
  if (own == at::kDouble || c10::isComplexType(own))
    builder_.where.fail(
        rows_.rows[row].spec.name,
        std::string("can't be in 8 bits, as its parameter has dtype ") + c10::toString(own));
  const StateSpec& spec = rows_.rows[row].spec;
  if (spec.exact_with != nullptr && is_switched_on(param.group, rule_, spec.exact_with))
    builder_.where.fail(spec.name, std::string("can't be in 8 bits with ") + spec.exact_with);
}

const at::Tensor& CompactStates::scales_of(const AtHand& param, const at::Tensor& codes, int row) {
  const Where& where = builder_.where;
  const int scales_row = rows_.scales[row];
  const char* name = rows_.rows[row].spec.name;
  check_takes_codes(param, row);
  if (scales_row < 0 || codes.scalar_type() != codes_dtype(moment_of(row)))
    where.fail(name, "has dtype " + dtype_text(codes) + ", which its codes can't have");
  const char* scales_name = rows_.rows[scales_row].spec.name;
  PyObject* value = param.found.values[scales_row];
  if (value == nullptr) where.fail(scales_name, "is missing from the state");
  const at::Tensor& scales = state_tensor(where, value, scales_name);
  const c10::TensorImpl& impl = *scales.unsafeGetTensorImpl();
  if (scales.scalar_type() != at::kFloat)
    where.fail(scales_name, "has dtype " + dtype_text(scales) + ", not float32");
  const int64_t count = num_scales(codes.numel());
  if (impl.dim() != 1 || impl.numel() != count)
    where.fail(scales_name, "has shape " + shape_of(impl) + ", and for the codes' blocks it is [" +
                                std::to_string(count) + "]");
  if (scales.device() != codes.device())
    where.fail(scales_name,
               "is on " + scales.device().str() + ", the codes on " + codes.device().str());
  if (!is_plain(impl)) throw NotFused(std::string(scales_name) + " is no plain strided tensor");
  if (!impl.is_non_overlapping_and_dense()) where.fail(scales_name, "is not dense in memory");
  return scales;
}

at::Tensor CompactStates::values_of(const AtHand& param, const at::Tensor& codes, int row) {
  const at::Tensor& scales = scales_of(param, codes, row);
  builder_.locate(*codes.unsafeGetTensorImpl(), rows_.rows[row].spec.name);
  builder_.locate(*scales.unsafeGetTensorImpl(), rows_.rows[rows_.scales[row]].spec.name);
  return decoded(codes, scales);
}

void CompactStates::add(TensorEntry& entry, const at::Tensor& codes, const at::Tensor& scales,
                        int row) {
  builder_.add_compact(entry, *codes.unsafeGetTensorImpl(), rows_.rows[row].place,
                       codes_format(moment_of(row)), *scales.unsafeGetTensorImpl(),
                       rows_.rows[row].spec.name, rows_.rows[rows_.scales[row]].spec.name);
}

void CompactStates::add_coded(TensorEntry& entry, const AtHand& param, const at::Tensor& codes,
                              int row) {
  const at::Tensor& scales = scales_of(param, codes, row);
  if (same_layout(param.impl(), *codes.unsafeGetTensorImpl()))
    return add(entry, codes, scales, row);
  // Blocks are counted in memory, which is in another order now.
  const at::Tensor values = values_of(param, codes, row);
  add_newly_coded(entry, param, &values, row);
}

void CompactStates::add_newly_coded(TensorEntry& entry, const AtHand& param,
                                    const at::Tensor* values, int row) {
  NewState& created = builder_.new_state(entry.device, param.found, rows_.rows[row].spec.name);
  at::Tensor& codes = created.add_like_param(rows_.keys[row]);
  at::Tensor& scales = created.add(rows_.keys[rows_.scales[row]]);
  Coded coded;
  if (values == nullptr) {
    coded = zeros_coded(param.tensor().detach(), moment_of(row));
  } else {
    at::Tensor in_order = empty_like(param.tensor().detach(), at::kFloat);
    in_order.copy_(*values);
    coded = encoded(in_order, moment_of(row));
  }
  codes = coded.codes;
  scales = coded.scales;
  add(entry, codes, scales, row);
}

void CompactStates::fail_of_remainder(const AtHand& param, const at::Tensor& remainder,
                                      at::ScalarType dtype) const {
  builder_.where.fail(kRemainderName, "has dtype " + dtype_text(remainder) + ", master_bits=" +
                                          std::to_string(param.group.master_bits) + " keeps " +
                                          c10::toString(dtype));
}

const at::Tensor& CompactStates::remainder_of(Device device, const AtHand& param) {
  const int row = rows_.remainder();
  const at::ScalarType dtype = param.group.master_bits == 32 ? at::kShort : at::kChar;
  PyObject* value = param.found.values[row];
  if (value != nullptr) {
    const at::Tensor& remainder =
        local_state(builder_.where, sharded_, gathered_, param.found, value, kRemainderName);
    const bool is_saved = remainder.scalar_type() == at::kFloat;
    if (remainder.scalar_type() != dtype && !is_saved) fail_of_remainder(param, remainder, dtype);
    check_place(builder_.where, param.impl(), *remainder.unsafeGetTensorImpl(), kRemainderName);
    check_storage(builder_.where, *remainder.unsafeGetTensorImpl(), kRemainderName);
    if (!is_saved && same_layout(param.impl(), *remainder.unsafeGetTensorImpl())) return remainder;
    builder_.locate(*remainder.unsafeGetTensorImpl(), kRemainderName);
    at::Tensor& in_order =
        builder_.new_state(device, param.found, kRemainderName).add_like_param(rows_.keys[row]);
    in_order = empty_like(param.tensor().detach(), dtype);
    const at::Tensor kept =
        is_saved ? remainder_of_floats(remainder.detach(), dtype) : remainder.detach();
    if (!kept.defined()) fail_of_remainder(param, remainder, dtype);
    in_order.copy_(kept);
    return in_order;
  }
  at::Tensor& created =
      builder_.new_state(device, param.found, kRemainderName).add_like_param(rows_.keys[row]);
  created = full_like(param.tensor().detach(), 0, dtype);
  return created;
}

void CompactStates::add_master(TensorEntry& entry, const AtHand& param,
                               const at::Tensor* remainder) {
  if (remainder == nullptr) {
    if (param.group.master_bits != 0 && param.tensor().scalar_type() == at::kHalf)
      builder_.where.fail("param", "has dtype Half, and master_bits is for bfloat16 parameters");
    if (param.found.values[rows_.remainder()] != nullptr)
      builder_.where.fail(kRemainderName,
                          "is in the state, but the parameter has no master: master_bits is None, "
                          "or the parameter is not in bfloat16");
    return;
  }
  const Format format = param.group.master_bits == 32 ? Format::Master32 : Format::Master24;
  builder_.add_compact(entry, param.impl(), kParam, format, *remainder->unsafeGetTensorImpl(),
                       "param", kRemainderName);
}

void CompactStates::choose_stochastic(TensorEntry& entry, const AtHand& param) {
  if (entry.is_double()) return;  // whose states are few, and rounded once, to nearest
  const auto choose = [&](int operand) {
    builder_.compact_of(entry).stochastic |= static_cast<uint8_t>(1u << operand);
  };
  if (entry.formats[kParam] == Format::BFloat16 || entry.formats[kParam] == Format::Master24)
    choose(kParam);
  for (int row = 0; row < rows_.num_usual; ++row) {
    const auto& [spec, kind, place] = rows_.rows[row];
    if (((param.group.rows >> row) & 1u) && kind == RowKind::LikeParam &&
        spec.moment == Moment::Second && entry.formats[place] == Format::BFloat16)
      choose(place);
  }
}

bool CompactStates::is_random(const TensorEntry& entry) const {
  if (!entry.is_compact()) return false;
  const auto is_codes = [](Format format) {
    return format == Format::SignedCodes || format == Format::UnsignedCodes;
  };
  return gathered_.table.compact[entry.compact].stochastic != 0 ||
         std::ranges::any_of(entry.formats, is_codes);
}

void CompactStates::add_counter(TensorEntry& entry, const AtHand& param) {
  const Where& where = builder_.where;
  const int row = rows_.counter();
  PyObject* value = param.found.values[row];
  const at::Tensor* step = value == nullptr ? nullptr : &existing_step(where, value);
  if (step == nullptr || !step_fits(*step, entry.device)) {
    if (step != nullptr) check_storage(where, *step->unsafeGetTensorImpl(), "step");
    at::Tensor& created =
        builder_.new_state(entry.device, param.found, "step").add(rows_.keys[row]);
    created = step == nullptr ? new_step(entry.device) : moved_step(where, *step, entry.device);
    step = &created;
  }
  OneElementState& counter = builder_.compact_of(entry).counter;
  counter.data = builder_.add_scalar(*step, "step");
  counter.format = format_of(*step->unsafeGetTensorImpl());
  counter.is_on_device = entry.device.kind == DeviceKind::CUDA;
  if (counter.is_on_device) return;
  counter.before = load_scalar(counter.data, counter.format);
  check_count(where, counter.before);
}

void CompactStates::finish(TensorEntry& entry, const AtHand& param, const at::Tensor* remainder) {
  add_master(entry, param, remainder);
  if (param.group.stochastic_rounding) choose_stochastic(entry, param);
  if (!is_random(entry)) return;
  builder_.compact_of(entry).key =
      mixed_key(options_.rounding_seed, static_cast<uint64_t>(param.number));
  if (param.found.spec != nullptr)
    builder_.compact_of(entry).first_index = sharded_.first_index(param.found.spec);
  if (rows_.counter() >= 0) add_counter(entry, param);
}

}  // namespace fused_optim
