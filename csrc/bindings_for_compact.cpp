// What checkpoints and masters ask of compact formats.
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "gather/compact_states.h"
#include "rules/registry.h"
#include "tensors/checks.h"
#include "tensors/compact.h"

namespace fused_optim {
namespace {

/// The states that can be in 8 bits, and whether their codes have signs.
std::vector<std::pair<std::string, bool>> moments(int rule) {
  check_rule(rule);
  std::vector<std::pair<std::string, bool>> found;
  const RuleSpec& spec = kRules[rule];
  for (int i = 0; i < spec.num_states; ++i)
    if (spec.states[i].has_codes())
      found.emplace_back(spec.states[i].name, spec.states[i].moment == Moment::First);
  return found;
}

/// The states without signs, also those that can't be in 8 bits.
std::vector<std::string> second_moments(int rule) {
  check_rule(rule);
  std::vector<std::string> found;
  const RuleSpec& spec = kRules[rule];
  for (int i = 0; i < spec.num_states; ++i)
    if (spec.states[i].moment == Moment::Second) found.emplace_back(spec.states[i].name);
  return found;
}

/// The hyperparameters that, switched on, keep a state out of codes, by its name.
std::map<std::string, std::string> exact_with(int rule) {
  check_rule(rule);
  std::map<std::string, std::string> found;
  const RuleSpec& spec = kRules[rule];
  for (int i = 0; i < spec.num_states; ++i)
    if (spec.states[i].exact_with != nullptr)
      found.emplace(spec.states[i].name, spec.states[i].exact_with);
  return found;
}

/// Whether all of its elements can be read where they lie.
bool is_readable(const at::Tensor& tensor) {
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  return is_plain(impl) && lies_within_storage(impl);
}

/// (codes, scales) of a moment's values, rounded to nearest.
py::tuple encode(const py::object& values, bool is_signed) {
  const at::Tensor read = tensor_in(values);
  if (!is_readable(read) || !read.is_non_overlapping_and_dense())
    throw py::value_error("values are dense, and within their storage");
  const Coded coded = encoded(read, is_signed ? Moment::First : Moment::Second);
  return py::make_tuple(wrap(coded.codes), wrap(coded.scales));
}

/// The reverse, in float32.
py::object decode(const py::object& codes, const py::object& scales) {
  const at::Tensor read = tensor_in(codes), read_scales = tensor_in(scales);
  const bool are_codes = read.scalar_type() == at::kChar || read.scalar_type() == at::kByte;
  if (!are_codes || !is_readable(read) || !read.is_non_overlapping_and_dense())
    throw py::value_error("codes are int8 or uint8, dense, and within their storage");
  if (read_scales.scalar_type() != at::kFloat || !is_readable(read_scales) ||
      !read_scales.is_contiguous() || read_scales.numel() != num_scales(read.numel()))
    throw py::value_error("scales are float32, one for each block of the codes");
  return wrap(decoded(read, read_scales));
}

/// A remainder of as many bits from a state dict's floats; None where they are none.
py::object remainder_of(const py::object& saved, int bits) {
  const at::Tensor read = tensor_in(saved);
  if (read.scalar_type() != at::kFloat || !is_readable(read)) return py::none();
  const at::Tensor dense = read.is_non_overlapping_and_dense() ? read : read.contiguous();
  const at::Tensor kept = remainder_of_floats(dense, bits == 24 ? at::kChar : at::kShort);
  return kept.defined() ? wrap(kept.to(read.device())) : py::none();
}

/// The float32 master of a bfloat16 parameter. Its remainder may be a state dict's.
py::object joined_of(const py::object& param, const py::object& remainder) {
  const py::object of_floats = remainder_of(remainder, 32);
  const at::Tensor high = tensor_in(param);
  const at::Tensor low = tensor_in(of_floats.is_none() ? remainder : of_floats);
  const bool are_masters = high.scalar_type() == at::kBFloat16 &&
                           (low.scalar_type() == at::kShort || low.scalar_type() == at::kChar);
  if (!are_masters || high.sizes() != low.sizes() || !is_readable(high) || !is_readable(low))
    throw py::value_error(
        "a master is a bfloat16 parameter and a remainder of its shape in int16 or int8, both "
        "within their storage");
  return wrap(joined(high, low));
}

}  // namespace

void add_bindings_for_compact(py::module_& m) {
  m.attr("FEWEST_IN_CODES") = kFewestInCodes;
  m.def("moments", &moments, py::arg("rule"));
  m.def("second_moments", &second_moments, py::arg("rule"));
  m.def("exact_with", &exact_with, py::arg("rule"));
  m.def("scales_name", &scales_name, py::arg("state"));
  m.def("is_readable", [](const py::object& tensor) { return is_readable(tensor_in(tensor)); });
  m.def("encode", &encode, py::arg("values"), py::arg("is_signed"));
  m.def("remainder_of", &remainder_of, py::arg("saved"), py::arg("bits"));
  m.def("joined", &joined_of, py::arg("param"), py::arg("remainder"));
  m.def("decode", &decode, py::arg("codes"), py::arg("scales"));
}

}  // namespace fused_optim
