// Adadelta (Zeiler 2012, arXiv:1212.5701), as torch.optim.Adadelta defines it.
#pragma once

#include "base/numeric.h"
#include "rules/rule.h"

namespace fused_optim {

struct Adadelta {
  static constexpr const char* name = "Adadelta";
  static constexpr const char* hyperparameters[] = {"lr", "rho", "eps", "weight_decay"};
  struct Hyperparameters {
    double lr, rho, eps, weight_decay;
  };
  static constexpr StateSpec states[] = {kStepState, second_moment("square_avg"),
                                         needing_bits(second_moment("acc_delta"))};

  template <class T>
  struct Scalars {
    T lr, rho, one_minus_rho, eps, weight_decay;
  };

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double /*step*/) {
    return {T(h.lr), T(h.rho), T(1.0 - h.rho), T(h.eps), T(h.weight_decay)};
  }

  template <StateMask states, class T>
  FUSED_OPTIM_INLINE static void update(T& param, T grad, T (&state)[2], const Scalars<T>& s) {
    auto& [square_avg, acc_delta] = state;

    grad = s.weight_decay != T(0) ? grad + s.weight_decay * param : grad;
    square_avg = s.rho * square_avg + s.one_minus_rho * grad * grad;
    const T delta = square_root(acc_delta + s.eps) / square_root(square_avg + s.eps) * grad;
    acc_delta = s.rho * acc_delta + s.one_minus_rho * delta * delta;
    param = param - s.lr * delta;
  }
};

}  // namespace fused_optim
