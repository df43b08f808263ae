// SGD with momentum (Sutskever et al. 2013), as torch.optim.SGD defines it.
#pragma once

#include "base/numeric.h"
#include "rules/rule.h"

namespace fused_optim {

struct SGD {
  static constexpr const char* name = "SGD";
  static constexpr const char* hyperparameters[] = {"lr", "momentum", "dampening", "weight_decay",
                                                    "nesterov"};
  struct Hyperparameters {
    double lr, momentum, dampening, weight_decay, nesterov;
  };
  static constexpr StateSpec states[] = {first_moment("momentum_buffer", "momentum")};
  static constexpr const char* first_step_differs_with = "dampening";

  template <class T>
  struct Scalars {
    T lr, momentum, one_minus_dampening, weight_decay, nesterov, first_step;
  };

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double step) {
    return {T(h.lr),           T(h.momentum), T(1.0 - h.dampening),
            T(h.weight_decay), T(h.nesterov), T(step == 1)};
  }

  template <StateMask states, class T>
  FUSED_OPTIM_INLINE static void update(T& param, T grad, T (&state)[1], const Scalars<T>& s) {
    auto& [momentum_buffer] = state;

    grad = s.weight_decay != T(0) ? grad + s.weight_decay * param : grad;
    if constexpr (has_state(states, 0)) {
      // The first buffer is the gradient itself, undampened.
      momentum_buffer =
          s.first_step != T(0) ? grad : s.momentum * momentum_buffer + s.one_minus_dampening * grad;
      grad = s.nesterov != T(0) ? grad + s.momentum * momentum_buffer : momentum_buffer;
    }
    param = param - s.lr * grad;
  }
};

}  // namespace fused_optim
