// The states of a rule as the gather finds them in Python: one list, with the average as its last.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

#include "gather/hyperparameter_key.h"
#include "rules/rule.h"
#include "step/operands.h"

namespace fused_optim {

enum class RowKind : uint8_t { Step, OneElement, LikeParam, Average };

/// One name in a parameter's state.
struct StateRow {
  StateSpec spec;
  RowKind kind;
  /// An operand of the entry, or the place among its states of one element.
  int place;
};

constexpr int kMaxRows = kMaxRuleStates + 1;

/// A bit for each row.
using RowMask = uint32_t;

/// What a step of a rule looks for in Python's dicts. Strings only: nothing of a step is kept.
struct RuleRows {
  std::vector<HyperparameterKey> hyperparameters;
  StateRow rows[kMaxRows];
  PyObject* keys[kMaxRows];  // interned, so that dict lookups compare pointers
  int num_rows;

  int average() const { return num_rows - 1; }
};

/// Interns the keys of a rule. Throws PythonError.
RuleRows intern_rows(const RuleSpec& rule);

}  // namespace fused_optim
