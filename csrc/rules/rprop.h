// Rprop (Riedmiller & Braun 1993), as torch.optim.Rprop defines it.
#pragma once

#include "base/numeric.h"
#include "rules/rule.h"

namespace fused_optim {

struct Rprop {
  static constexpr const char* name = "Rprop";
  static constexpr const char* hyperparameters[] = {"lr", "etas[0]", "etas[1]", "step_sizes[0]",
                                                    "step_sizes[1]"};
  struct Hyperparameters {
    double lr, etaminus, etaplus, step_size_min, step_size_max;
  };
  static constexpr StateSpec states[] = {kStepState, {"prev"}, {"step_size", nullptr, "lr"}};

  template <class T>
  struct Scalars {
    T etaminus, etaplus, step_size_min, step_size_max;
  };

  template <class T>
  FUSED_OPTIM_INLINE static Scalars<T> scalars(const Hyperparameters& h, double /*step*/) {
    return {T(h.etaminus), T(h.etaplus), T(h.step_size_min), T(h.step_size_max)};
  }

  template <StateMask states, class T>
  FUSED_OPTIM_INLINE static void update(T& param, T grad, T (&state)[2], const Scalars<T>& s) {
    auto& [prev, step_size] = state;

    const T agreement = sign(grad * prev);
    T eta = agreement > T(0) ? s.etaplus : T(1);
    eta = agreement < T(0) ? s.etaminus : eta;
    step_size = clamp(step_size * eta, s.step_size_min, s.step_size_max);

    grad = agreement < T(0) ? T(0) : grad;
    param = param - sign(grad) * step_size;
    prev = grad;
  }
};

}  // namespace fused_optim
