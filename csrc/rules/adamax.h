// Adamax (Kingma & Ba 2015, arXiv:1412.6980, section 7.1), as torch.optim.Adamax defines it.
#pragma once

#include "base/numeric.h"
#include "base/power.h"
#include "rules/rule.h"

namespace fused_optim {

struct Adamax {
  static constexpr const char* name = "Adamax";
  static constexpr const char* hyperparameters[] = {"lr", "betas[0]", "betas[1]", "eps",
                                                    "weight_decay"};
  struct Hyperparameters {
    double lr, beta1, beta2, eps, weight_decay;
  };
  static constexpr StateSpec states[] = {kStepState, first_moment("exp_avg"),
                                         second_moment("exp_inf")};

  template <class T>
  struct Scalars {
    T step_size;  // lr / (1 - beta1^t)
    T one_minus_beta1, beta2, eps, weight_decay;
  };

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double step) {
    const double bias_correction = 1.0 - integer_power(h.beta1, step);
    return {T(h.lr / bias_correction), T(1.0 - h.beta1), T(h.beta2), T(h.eps), T(h.weight_decay)};
  }

  template <StateMask states, class T>
  FUSED_OPTIM_INLINE static void update(T& param, T grad, T (&state)[2], const Scalars<T>& s) {
    auto& [exp_avg, exp_inf] = state;

    grad = s.weight_decay != T(0) ? grad + s.weight_decay * param : grad;
    exp_avg = lerp(exp_avg, grad, s.one_minus_beta1);
    exp_inf = maximum(s.beta2 * exp_inf, absolute(grad) + s.eps);
    param = param - s.step_size * exp_avg / exp_inf;
  }
};

}  // namespace fused_optim
