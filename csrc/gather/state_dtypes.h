// In which dtypes states are to be kept: what users say by state_dtype.
#pragma once

#include <Python.h>
#include <c10/core/ScalarType.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace fused_optim {

/// Nothing is asked for of states that have no dtype here: they stay as they are, or begin in their
/// parameter's.
struct StateDtypes {
  std::optional<c10::ScalarType> of_all;
  std::vector<std::pair<std::string, c10::ScalarType>> by_name;

  std::optional<c10::ScalarType> of(std::string_view state) const;
};

/// What users call 8-bit codes of either kind.
constexpr c10::ScalarType kCodes = c10::ScalarType::Char;

/// From None, torch.float32, torch.bfloat16, torch.int8, or a dict of these by name. Runs no code
/// of the user's. Throws std::invalid_argument for anything else.
StateDtypes read_state_dtypes(PyObject* value);

/// The reverse, a new reference.
PyObject* object_of(const StateDtypes& dtypes);

/// torch.float32, torch.bfloat16, or kCodes. Throws std::invalid_argument for anything else.
c10::ScalarType read_dtype(PyObject* value, bool may_be_codes);

/// A new reference to the dtype's object.
PyObject* object_of(c10::ScalarType dtype);

}  // namespace fused_optim
