// RAdam (Liu et al. 2020, arXiv:1908.03265), optionally with decoupled weight decay.
#pragma once

#include "base/numeric.h"
#include "base/power.h"
#include "rules/rule.h"

namespace fused_optim {

struct RAdam {
  static constexpr const char* name = "RAdam";
  static constexpr const char* hyperparameters[] = {
      "lr", "betas[0]", "betas[1]", "eps", "weight_decay", "decoupled_weight_decay"};
  struct Hyperparameters {
    double lr, beta1, beta2, eps, weight_decay, decoupled_weight_decay;
  };
  static constexpr StateSpec states[] = {kStepState, first_moment("exp_avg"),
                                         second_moment("exp_avg_sq")};

  template <class T>
  struct Scalars {
    T one_minus_beta1, beta2, one_minus_beta2, eps;
    T step_size;                // lr / (1 - beta1^t), times r_t * sqrt(1 - beta2^t) if rectified
    T is_rectified;             // whether the variance is tractable: rho_t > 5
    T coupled_weight_decay;     // added to the gradient
    T decoupled_weight_factor;  // 1 - lr * weight_decay
  };

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double step) {
    const double beta2_power = integer_power(h.beta2, step);
    const double bias_correction1 = 1.0 - integer_power(h.beta1, step);
    const double bias_correction2 = 1.0 - beta2_power;
    const double rho_inf = 2.0 / (1.0 - h.beta2) - 1.0;
    const double rho_t = rho_inf - 2.0 * step * beta2_power / bias_correction2;
    const bool is_rectified = rho_t > 5.0;
    const double rectification = is_rectified
                                     ? square_root((rho_t - 4.0) * (rho_t - 2.0) * rho_inf /
                                                   ((rho_inf - 4.0) * (rho_inf - 2.0) * rho_t)) *
                                           square_root(bias_correction2)
                                     : 1.0;
    const bool decoupled = h.decoupled_weight_decay != 0;
    return {T(1.0 - h.beta1),
            T(h.beta2),
            T(1.0 - h.beta2),
            T(h.eps),
            T(h.lr / bias_correction1 * rectification),
            T(is_rectified ? 1.0 : 0.0),
            T(decoupled ? 0.0 : h.weight_decay),
            T(decoupled ? 1.0 - h.lr * h.weight_decay : 1.0)};
  }

  template <StateMask states, class T>
  FUSED_OPTIM_INLINE static void update(T& param, T grad, T (&state)[2], const Scalars<T>& s) {
    auto& [exp_avg, exp_avg_sq] = state;

    param = param * s.decoupled_weight_factor;
    grad = s.coupled_weight_decay != T(0) ? grad + s.coupled_weight_decay * param : grad;

    exp_avg = lerp(exp_avg, grad, s.one_minus_beta1);
    exp_avg_sq = s.beta2 * exp_avg_sq + s.one_minus_beta2 * grad * grad;

    const T adaptive = square_root(exp_avg_sq) + s.eps;
    const T denom = s.is_rectified != T(0) ? adaptive : T(1);
    param = param - s.step_size * exp_avg / denom;
  }
};

}  // namespace fused_optim
