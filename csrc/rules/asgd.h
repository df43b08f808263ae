// ASGD, averaged stochastic gradient descent (Polyak & Juditsky 1992, SIAM J. Control Optim. 30).
#pragma once

#include "base/numeric.h"
#include "base/power.h"
#include "rules/rule.h"

namespace fused_optim {

struct ASGD {
  static constexpr const char* name = "ASGD";
  static constexpr const char* hyperparameters[] = {"lr", "lambd", "alpha", "t0", "weight_decay"};
  struct Hyperparameters {
    double lr, lambd, alpha, t0, weight_decay;
  };
  static constexpr StateSpec states[] = {
      kStepState, one_element_state("eta", 0.0, "lr"), one_element_state("mu", 1.0), {"ax"}};

  template <class T>
  struct Scalars {
    T decay;  // 1 - lambd * eta
    T eta;    // the step size
    T mu;     // the weight of the new parameter in the average: 1 until averaging begins
    T weight_decay;
  };

  /// eta and mu of the next step.
  template <class S>
  FUSED_OPTIM_INLINE static void advance(const Hyperparameters& h, double step, S (&state)[2]) {
    auto& [eta, mu] = state;
    eta = S(h.lr / power(1.0 + h.lambd * h.lr * step, h.alpha));
    mu = S(1.0 / maximum(1.0, step - h.t0));
  }

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double /*step*/,
                                               const double* before, const double* /*after*/) {
    const double eta = before[0], mu = before[1];
    return {T(1.0 - h.lambd * eta), T(eta), T(mu), T(h.weight_decay)};
  }

  template <StateMask states, class T>
  FUSED_OPTIM_INLINE static void update(T& param, T grad, T (&state)[1], const Scalars<T>& s) {
    auto& [ax] = state;
    grad = s.weight_decay != T(0) ? grad + s.weight_decay * param : grad;
    param = param * s.decay - s.eta * grad;
    const T averaged = ax + (param - ax) * s.mu;
    ax = s.mu != T(1) ? averaged : param;
  }
};

}  // namespace fused_optim
