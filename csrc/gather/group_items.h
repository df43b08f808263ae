// The items of a parameter group's dict that a step reads.
#pragma once

#include <Python.h>

#include <cstdint>
#include <span>

#include "gather/state_rows.h"

namespace fused_optim {

/// The keys of the last group's dict and what each is to a step: the groups of an optimizer mostly
/// have the same keys in the same order. Borrowed: forgotten when code of the user's may have run.
struct LastKeys {
  static constexpr int kMost = 32;
  int size = 0;
  PyObject* keys[kMost];
  uint32_t uses[kMost];
};

/// Found in one walk through the dict, which takes less time than to look each of them up.
/// Borrowed: good until code of the user's runs, which may change the dict; from then on each is
/// looked up.
class GroupItems {
 public:
  GroupItems(PyObject* group, const RuleRows& rows, LastKeys& last);

  /// Throws NotFused where it is missing. `name`: the hyperparameter's, for errors.
  PyObject* hyperparameter(int index, const char* name) const;
  PyObject* maximize() const;

  /// Whether one of the keys may be an option, the group's or the whole optimizer's. False is
  /// certain, and nearly all that says no more than torch's.
  bool may_have_options() const { return may_have_options_; }

  /// To be said when a value was read that may have run code.
  void may_have_changed() {
    is_fresh_ = false;
    may_have_options_ = true;
    last_.size = 0;
  }

 private:
  PyObject* find(PyObject* found, PyObject* key, const char* name) const;

  PyObject* group_;
  const RuleRows& rows_;
  LastKeys& last_;
  PyObject* hyperparameters_[kMaxHyperparameters] = {};
  PyObject* maximize_ = nullptr;
  bool may_have_options_ = false;
  bool is_fresh_ = true;
};

/// Of kStepOptionNames, interned.
std::span<PyObject* const> step_option_keys();

void initialize_group_items();

}  // namespace fused_optim
