// Lion (Chen et al. 2023, arXiv:2302.06675), with decoupled weight decay.
#pragma once

#include "base/numeric.h"
#include "rules/rule.h"

namespace fused_optim {

struct Lion {
  static constexpr const char* name = "Lion";
  static constexpr const char* hyperparameters[] = {"lr", "betas[0]", "betas[1]", "weight_decay"};
  struct Hyperparameters {
    double lr, beta1, beta2, weight_decay;
  };
  static constexpr StateSpec states[] = {first_moment("exp_avg")};

  template <class T>
  struct Scalars {
    T lr, beta1, one_minus_beta1, beta2, one_minus_beta2, weight_decay;
  };

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double /*step*/) {
    return {T(h.lr), T(h.beta1), T(1.0 - h.beta1), T(h.beta2), T(1.0 - h.beta2), T(h.weight_decay)};
  }

  template <StateMask states, class T>
  FUSED_OPTIM_INLINE static void update(T& param, T grad, T (&state)[1], const Scalars<T>& s) {
    auto& [exp_avg] = state;
    const T direction = sign(s.beta1 * exp_avg + s.one_minus_beta1 * grad);
    const T decayed = direction + s.weight_decay * param;
    param = param - s.lr * (s.weight_decay != T(0) ? decayed : direction);
    exp_avg = s.beta2 * exp_avg + s.one_minus_beta2 * grad;
  }
};

}  // namespace fused_optim
