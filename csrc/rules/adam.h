// Adam (Kingma & Ba 2015, arXiv:1412.6980), with AMSGrad (Reddi et al. 2018, arXiv:1904.09237)
// and with AdamW's decoupled weight decay (Loshchilov & Hutter 2019, arXiv:1711.05101).
#pragma once

#include "base/numeric.h"
#include "base/power.h"
#include "rules/rule.h"

namespace fused_optim {

struct Adam {
  static constexpr const char* name = "Adam";
  static constexpr const char* hyperparameters[] = {
      "lr", "betas[0]", "betas[1]", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay"};
  struct Hyperparameters {
    double lr, beta1, beta2, eps, weight_decay, amsgrad, decoupled_weight_decay;
  };
  static constexpr StateSpec states[] = {kStepState,
                                         first_moment("exp_avg"),
                                         second_moment("exp_avg_sq"),
                                         {"max_exp_avg_sq", "amsgrad"}};

  template <class T>
  struct Scalars {
    T one_minus_beta1, beta2, one_minus_beta2, eps;
    T step_size;                // lr / (1 - beta1^t)
    T by_bias_correction2;      // 1 / sqrt(1 - beta2^t): multiplying is faster than dividing
    T coupled_weight_decay;     // Adam: added to the gradient
    T decoupled_weight_factor;  // AdamW: 1 - lr * weight_decay
  };

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double step) {
    const double bias_correction1 = 1.0 - integer_power(h.beta1, step);
    const double bias_correction2 = 1.0 - integer_power(h.beta2, step);
    const bool decoupled = h.decoupled_weight_decay != 0;
    return {T(1.0 - h.beta1),
            T(h.beta2),
            T(1.0 - h.beta2),
            T(h.eps),
            T(h.lr / bias_correction1),
            T(1.0 / square_root(bias_correction2)),
            T(decoupled ? 0.0 : h.weight_decay),
            T(decoupled ? 1.0 - h.lr * h.weight_decay : 1.0)};
  }

  template <StateMask states, class T>
  FUSED_OPTIM_INLINE static void update(T& param, T grad, T (&state)[3], const Scalars<T>& s) {
    auto& [exp_avg, exp_avg_sq, max_exp_avg_sq] = state;

    param = param * s.decoupled_weight_factor;
    grad = s.coupled_weight_decay != T(0) ? grad + s.coupled_weight_decay * param : grad;

    exp_avg = lerp(exp_avg, grad, s.one_minus_beta1);
    exp_avg_sq = s.beta2 * exp_avg_sq + s.one_minus_beta2 * grad * grad;

    T second_moment = exp_avg_sq;
    if constexpr (has_state(states, 2)) {
      max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq);
      second_moment = max_exp_avg_sq;
    }
    const T denom = square_root(second_moment) * s.by_bias_correction2 + s.eps;
    param = param - s.step_size * exp_avg / denom;
  }
};

}  // namespace fused_optim
