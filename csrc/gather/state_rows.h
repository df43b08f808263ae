// The states of a rule as the gather finds them in Python: one list, of the rule's own, the
// average, and what compact formats keep beside.
#pragma once

#include <Python.h>

#include <cstdint>
#include <string>
#include <vector>

#include "gather/hyperparameter_key.h"
#include "rules/rule.h"
#include "step/operands.h"

namespace fused_optim {

enum class RowKind : uint8_t {
  Step,
  OneElement,
  LikeParam,
  Average,
  Remainder,  // of the parameter's master
  Scales,     // of a state's codes
  Counter     // of steps, for random bits, where the rule counts none
};

/// One name in a parameter's state.
struct StateRow {
  StateSpec spec;
  RowKind kind;
  /// An operand of the entry, of scales the one that they belong to, or the place among its states
  /// of one element.
  int place;
};

constexpr int kMaxRows = kMaxRuleStates + 1 + 1 + kMaxStates + 1;

/// A bit for each row.
using RowMask = uint32_t;

/// What a step of a rule looks for in Python's dicts. Strings only: nothing of a step is kept.
struct RuleRows {
  std::vector<HyperparameterKey> hyperparameters;
  StateRow rows[kMaxRows];
  PyObject* keys[kMaxRows];  // interned, so that dict lookups compare pointers
  int num_rows;
  int num_usual;            // without what compact formats keep beside, which comes last
  int8_t scales[kMaxRows];  // the row of a state's scales, by the state's; -1 where it has no codes

  int average() const { return num_usual - 1; }
  int remainder() const { return num_usual; }
  /// -1 where the rule counts steps itself.
  int counter() const { return rows[num_rows - 1].kind == RowKind::Counter ? num_rows - 1 : -1; }
};

inline constexpr char kRemainderName[] = "remainder";

/// The name of what lies beside a state of codes.
std::string scales_name(const std::string& state);

/// Interns the keys of a rule. Throws PythonError.
RuleRows intern_rows(const RuleSpec& rule);

}  // namespace fused_optim
