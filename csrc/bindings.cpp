// The Python module fused_optim._C: the only file that Python calls.
#include "bindings.h"

#include <ATen/record_function.h>
#include <c10/core/TensorImpl.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdlib>

#include "base/errors.h"
#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cuda/engine.h"
#include "gather/gather.h"
#include "gather/gradient_list.h"
#include "gather/lookup.h"
#include "gather/python_tensor.h"
#include "rules/registry.h"
#include "run/exchange.h"
#include "run/step.h"
#include "run/total_norm.h"

namespace fused_optim {
namespace {

/// Calls `run`. None, or why it isn't for the kernels: (reason, whether users expect that).
template <class Run>
py::object answer_of(Run run) {
  try {
    run();
    return py::none();
  } catch (const NotFusedAsExpected& reason) {
    return py::make_tuple(reason.what(), true);
  } catch (const NotFused& reason) {
    return py::make_tuple(reason.what(), false);
  } catch (const PythonError&) {
    throw py::error_already_set();
  } catch (python_error& error) {
    rethrow(error);
  }
}

/// From a pair: a tuple of (mesh, sharded dimensions, number) for each placement, and the callable.
AcrossRanks read_across_ranks(const py::tuple& pair) {
  AcrossRanks read;
  for (const py::handle& item : pair[0].cast<py::tuple>()) {
    const auto place = item.cast<py::tuple>();
    read.placements.push_back({place[0].ptr(), place[1].cast<uint32_t>(), place[2].cast<int>()});
    read.num_different = std::max(read.num_different, read.placements.back().number + 1);
  }
  read.exchange = pair[1].ptr();
  return read;
}

/// None, or why torch's own step has to do it. `name`: the optimizer's, for errors.
py::object step_of(int rule, const char* name, const py::object& param_groups,
                   const py::object& state, const py::object& grad_scale,
                   const py::object& found_inf, StepOptions* options, Exchange* exchange,
                   const py::object& across_ranks) {
  check_rule(rule);
  std::optional<AcrossRanks> read;
  // The tuples and their meshes stay: what owns them is an argument of this call.
  if (!across_ranks.is_none()) read = read_across_ranks(across_ranks);
  return answer_of([&] {
    step({rule, name, param_groups.ptr(), state.ptr(), grad_scale.ptr(), found_inf.ptr(),
          read ? &*read : nullptr},
         options, exchange);
  });
}

/// The answer that step would give, without a step.
py::object why_not_fused(int rule, const char* name, const py::object& param_groups,
                         const py::object& state, const StepOptions& options) {
  check_rule(rule);
  return answer_of([&] {
    Amp amp(Py_None, Py_None);
    gather({rule, name, param_groups.ptr(), state.ptr(), Py_None, Py_None, nullptr}, amp, options);
  });
}

void bump_versions(PyObject* tensors) {
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(tensors); ++i)
    unpack(PyList_GET_ITEM(tensors, i)).unsafeGetTensorImpl()->bump_version();
}

/// The norm of a list of gradients as float64, or why the kernels don't take it.
py::object grad_norm(const py::object& gradients, double norm_type) {
  try {
    const Gradients read = read_gradients(gradients.ptr());
    return wrap(total_norm(read, read_norm_type(norm_type, gradients.ptr())).select(0, 0));
  } catch (const NotFused& reason) {
    return py::str(reason.what());
  }
}

/// Scales a list of gradients that grad_norm took, by the norm that it gave. None, or why the
/// kernels don't take them.
py::object clip_grads(const py::object& gradients, const py::object& norm, double max_norm) {
  try {
    const Gradients read = read_gradients(gradients.ptr(), /*are_written=*/true);
    if (clip(read, number_in(norm), max_norm)) bump_versions(gradients.ptr());
    return py::none();
  } catch (const NotFused& reason) {
    return py::str(reason.what());
  }
}

/// Gives each parameter its gradient, None for none, without the checks of `p.grad = ...`: as one
/// call that runs no Python code before all have theirs.
void set_grads(const py::list& params, const py::list& grads) {
  if (params.size() != grads.size()) throw py::value_error("as many gradients as parameters");
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs;
  for (size_t i = 0; i < params.size(); ++i)
    pairs.emplace_back(tensor_in(params[i]),
                       grads[i].is_none() ? at::Tensor() : tensor_in(grads[i]));
  // Swapped: what is replaced goes when all is done, as dropping a tensor may run a finalizer.
  for (auto& [param, grad] : pairs) std::swap(param.mutable_grad(), grad);
}

std::vector<std::string> rules() {
  std::vector<std::string> names;
  for (const RuleSpec& spec : kRules) names.emplace_back(spec.name);
  return names;
}

/// (name, the hyperparameter that switches it on or None, whether it has one element) of each state
/// that torch keeps.
py::list states(int rule) {
  check_rule(rule);
  const RuleSpec& spec = kRules[rule];
  py::list found;
  for (int i = 0; i < spec.num_states; ++i) {
    const StateSpec& state = spec.states[i];
    const py::object switch_name =
        state.enabled_by == nullptr ? py::none() : py::object(py::str(state.enabled_by));
    found.append(py::make_tuple(state.name, switch_name, !state.is_like_param()));
  }
  return found;
}

std::vector<std::string> scalar_states(int rule) {
  check_rule(rule);
  std::vector<std::string> names;
  const RuleSpec& spec = kRules[rule];
  for (int i = 0; i < spec.num_states; ++i)
    if (!spec.states[i].is_like_param() && !is_step(spec.states[i]))
      names.emplace_back(spec.states[i].name);
  return names;
}

void choose_isa_from_environment() {
  const char* name = std::getenv("FUSED_OPTIM_ISA");
  if (name != nullptr && *name != '\0') cpu::set_isa(name);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  try {
    choose_isa_from_environment();
  } catch (const std::runtime_error& error) {
    throw py::import_error(error.what());
  }
  initialize_lookup(py::module_::import("torch.nn").attr("Parameter").ptr(),
                    py::module_::import("collections").attr("defaultdict").ptr());
  add_bindings_for_tests(m);
  add_bindings_for_compact(m);
  add_bindings_for_contexts(m);
  add_bindings_for_options(m);
  m.def("step", &step_of, py::arg("rule"), py::arg("name"), py::arg("param_groups"),
        py::arg("state"), py::arg("grad_scale"), py::arg("found_inf"), py::arg("options"),
        py::arg("exchange"), py::arg("across_ranks") = py::none());
  m.def("placements_of_params", [](const py::list& params) {
    try {
      return py::reinterpret_steal<py::tuple>(placements_of_params(params.ptr()).release());
    } catch (const PythonError&) {
      throw py::error_already_set();
    }
  });
  m.def("has_meta", [](const py::list& tensors) {
    for (const py::handle& tensor : tensors)
      if (tensor_in(tensor).is_meta()) return true;
    return false;
  });
  m.def("why_not_fused", &why_not_fused, py::arg("rule"), py::arg("name"), py::arg("param_groups"),
        py::arg("state"), py::arg("options"));
  m.def("grad_norm", &grad_norm, py::arg("gradients"), py::arg("norm_type"));
  m.def("clip_grads", &clip_grads, py::arg("gradients"), py::arg("norm"), py::arg("max_norm"));
  // Profilers of this thread or of all, execution traces; modes get a range as an operation.
  m.def("has_profiler_callbacks",
        [] { return at::hasCallbacks() || c10::impl::TorchDispatchModeTLS::any_modes_set(); });
  m.def("set_grads", &set_grads, py::arg("params"), py::arg("grads"));
  m.def("rules", &rules);
  m.def("states", &states, py::arg("rule"));
  m.def("scalar_states", &scalar_states, py::arg("rule"));
  m.def("built_isas", &cpu::built_isas);
  m.def("isa", [] { return std::string(cpu::isa_name(cpu::current_isa())); });
  m.def("set_isa", &cpu::set_isa);
  m.def("cuda_archs", &cuda::built_archs);
  m.def("openmp_runtime", [] { return std::string(cpu::openmp_runtime()); });
}

}  // namespace fused_optim
