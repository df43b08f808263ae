// A rule's one-element states, in whatever dtype they are stored: read, advanced and written.
#pragma once

#include "numeric.h"
#include "rule.h"

namespace fused_optim {

FUSED_OPTIM_INLINE double load_scalar(const void* data, DType dtype) {
  switch (dtype) {
    case DType::Float32:
      return *static_cast<const float*>(data);
    case DType::Float64:
      return *static_cast<const double*>(data);
    case DType::BFloat16:
      return to_opmath(*static_cast<const bfloat16*>(data));
    case DType::Float16:
      return to_opmath(*static_cast<const float16*>(data));
  }
  return 0;
}

FUSED_OPTIM_INLINE void store_scalar(void* data, DType dtype, double value) {
  const auto single = static_cast<float>(value);
  switch (dtype) {
    case DType::Float32:
      *static_cast<float*>(data) = single;
      break;
    case DType::Float64:
      *static_cast<double*>(data) = value;
      break;
    case DType::BFloat16:
      *static_cast<bfloat16*>(data) = to_storage<bfloat16>(single);
      break;
    case DType::Float16:
      *static_cast<float16*>(data) = to_storage<float16>(single);
      break;
  }
}

namespace detail {

template <class Rule, class Storage>
FUSED_OPTIM_INLINE void advance(const typename Rule::Hyperparameters& hyperparameters, double step,
                                ScalarValues& values) {
  using S = opmath_t<Storage>;
  S states[num_scalar_states<Rule>];
  FUSED_OPTIM_UNROLL
  for (int i = 0; i < num_scalar_states<Rule>; ++i) states[i] = static_cast<S>(values.before[i]);
  Rule::template advance<S>(hyperparameters, step, states);
  FUSED_OPTIM_UNROLL
  for (int i = 0; i < num_scalar_states<Rule>; ++i)
    values.after[i] = to_opmath(to_storage<Storage>(states[i]));
}

}  // namespace detail

/// From the values before the step to those after it, as a tensor of this dtype holds them.
template <class Rule>
FUSED_OPTIM_INLINE void advance_scalar_states(const typename Rule::Hyperparameters& hyperparameters,
                                              double step, DType dtype, ScalarValues& values) {
  switch (dtype) {
    case DType::Float32:
      return detail::advance<Rule, float>(hyperparameters, step, values);
    case DType::Float64:
      return detail::advance<Rule, double>(hyperparameters, step, values);
    case DType::BFloat16:
      return detail::advance<Rule, bfloat16>(hyperparameters, step, values);
    case DType::Float16:
      return detail::advance<Rule, float16>(hyperparameters, step, values);
  }
}

/// Rule::scalars, whether the rule has scalar states or not.
template <class Rule, class T>
FUSED_OPTIM_INLINE typename Rule::template Scalars<T> scalars_of(
    const typename Rule::Hyperparameters& hyperparameters, double step,
    const ScalarValues& values) {
  if constexpr (num_scalar_states<Rule> > 0)
    return Rule::template scalars<T>(hyperparameters, step, values.before, values.after);
  else
    return Rule::template scalars<T>(hyperparameters, step);
}

}  // namespace fused_optim
