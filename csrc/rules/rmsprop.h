// RMSprop (Hinton, Coursera lecture 6e, 2012); centered as in Graves 2013 (arXiv:1308.0850).
#pragma once

#include "base/numeric.h"
#include "rules/rule.h"

namespace fused_optim {

struct RMSprop {
  static constexpr const char* name = "RMSprop";
  static constexpr const char* hyperparameters[] = {"lr",           "alpha",    "eps",
                                                    "weight_decay", "momentum", "centered"};
  struct Hyperparameters {
    double lr, alpha, eps, weight_decay, momentum, centered;
  };
  static constexpr StateSpec states[] = {kStepState,
                                         second_moment("square_avg", nullptr, "centered"),
                                         first_moment("momentum_buffer", "momentum"),
                                         {"grad_avg", "centered"}};

  template <class T>
  struct Scalars {
    T lr, alpha, one_minus_alpha, eps, weight_decay, momentum;
  };

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double /*step*/) {
    return {T(h.lr), T(h.alpha), T(1.0 - h.alpha), T(h.eps), T(h.weight_decay), T(h.momentum)};
  }

  template <StateMask states, class T>
  FUSED_OPTIM_INLINE static void update(T& param, T grad, T (&state)[3], const Scalars<T>& s) {
    auto& [square_avg, momentum_buffer, grad_avg] = state;

    grad = s.weight_decay != T(0) ? grad + s.weight_decay * param : grad;
    square_avg = s.alpha * square_avg + s.one_minus_alpha * grad * grad;

    T variance = square_avg;
    if constexpr (has_state(states, 2)) {
      grad_avg = lerp(grad_avg, grad, s.one_minus_alpha);
      variance = square_avg - grad_avg * grad_avg;
    }
    const T avg = square_root(variance) + s.eps;

    if constexpr (has_state(states, 1)) {
      momentum_buffer = s.momentum * momentum_buffer + grad / avg;
      param = param - s.lr * momentum_buffer;
    } else {
      param = param - s.lr * grad / avg;
    }
  }
};

}  // namespace fused_optim
