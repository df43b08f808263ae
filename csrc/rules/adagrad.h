// Adagrad (Duchi, Hazan & Singer 2011, JMLR 12), as torch.optim.Adagrad defines it.
#pragma once

#include "base/numeric.h"
#include "rules/rule.h"

namespace fused_optim {

struct Adagrad {
  static constexpr const char* name = "Adagrad";
  static constexpr const char* hyperparameters[] = {"lr", "lr_decay", "eps", "weight_decay",
                                                    "initial_accumulator_value"};
  struct Hyperparameters {
    double lr, lr_decay, eps, weight_decay, initial_accumulator_value;
  };
  static constexpr StateSpec states[] = {kStepState,
                                         second_moment("sum", "initial_accumulator_value")};

  template <class T>
  struct Scalars {
    T step_size;  // lr / (1 + (t - 1) * lr_decay)
    T eps, weight_decay;
  };

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double step) {
    return {T(h.lr / (1.0 + (step - 1.0) * h.lr_decay)), T(h.eps), T(h.weight_decay)};
  }

  template <StateMask states, class T>
  FUSED_OPTIM_INLINE static void update(T& param, T grad, T (&state)[1], const Scalars<T>& s) {
    auto& [sum] = state;

    grad = s.weight_decay != T(0) ? grad + s.weight_decay * param : grad;
    sum = sum + grad * grad;
    param = param - s.step_size * grad / (square_root(sum) + s.eps);
  }
};

}  // namespace fused_optim
