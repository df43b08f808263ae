// NAdam (Dozat 2016, openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ), optionally with decoupled
// weight decay.
#pragma once

#include "base/numeric.h"
#include "base/power.h"
#include "rules/rule.h"

namespace fused_optim {

struct NAdam {
  static constexpr const char* name = "NAdam";
  static constexpr const char* hyperparameters[] = {"lr",
                                                    "betas[0]",
                                                    "betas[1]",
                                                    "eps",
                                                    "weight_decay",
                                                    "momentum_decay",
                                                    "decoupled_weight_decay"};
  struct Hyperparameters {
    double lr, beta1, beta2, eps, weight_decay, momentum_decay, decoupled_weight_decay;
  };
  static constexpr StateSpec states[] = {kStepState, one_element_state("mu_product", 1.0),
                                         first_moment("exp_avg"), second_moment("exp_avg_sq")};

  template <class T>
  struct Scalars {
    T one_minus_beta1, beta2, one_minus_beta2, eps;
    T by_bias_correction2;      // 1 / (1 - beta2^t): multiplying is faster than dividing
    T exp_avg_step_size;        // lr * mu_{t+1} / (1 - mu_1 ... mu_{t+1})
    T grad_step_size;           // lr * (1 - mu_t) / (1 - mu_1 ... mu_t)
    T coupled_weight_decay;     // added to the gradient
    T decoupled_weight_factor;  // 1 - lr * weight_decay
  };

  /// mu_t, the momentum of step t.
  FUSED_OPTIM_INLINE static double momentum(const Hyperparameters& h, double step) {
    return h.beta1 * (1.0 - 0.5 * power(0.96, step * h.momentum_decay));
  }

  template <class S>
  FUSED_OPTIM_INLINE static void advance(const Hyperparameters& h, double step, S (&state)[1]) {
    auto& [mu_product] = state;
    mu_product = mu_product * S(momentum(h, step));
  }

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double step,
                                               const double* /*before*/, const double* after) {
    const double mu = momentum(h, step);
    const double mu_next = momentum(h, step + 1.0);
    const double mu_product = after[0];
    const bool decoupled = h.decoupled_weight_decay != 0;
    return {T(1.0 - h.beta1),
            T(h.beta2),
            T(1.0 - h.beta2),
            T(h.eps),
            T(1.0 / (1.0 - integer_power(h.beta2, step))),
            T(h.lr * mu_next / (1.0 - mu_product * mu_next)),
            T(h.lr * (1.0 - mu) / (1.0 - mu_product)),
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

    const T denom = square_root(exp_avg_sq * s.by_bias_correction2) + s.eps;
    param = param - (s.grad_step_size * grad + s.exp_avg_step_size * exp_avg) / denom;
  }
};

}  // namespace fused_optim
