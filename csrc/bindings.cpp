// The Python module fused_optim._C: the only file that Python calls.
#include <c10/core/TensorImpl.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/Exceptions.h>

#include <cstdlib>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cuda/engine.h"
#include "cuda/host_run.h"
#include "decide.h"
#include "exchange.h"
#include "finish.h"
#include "gather.h"
#include "gather_options.h"
#include "launch.h"
#include "lookup.h"
#include "norm/total_norm.h"
#include "rules/registry.h"
#include "step.h"
#include "torch_calls.h"

namespace py = pybind11;

namespace fused_optim {
namespace {

/// Code of a tensor subclass that an operation has called failed: pybind11's way of saying it.
[[noreturn]] void rethrow(python_error& error) {
  error.restore();
  throw py::error_already_set();
}

/// The tensor in a Python object. Throws TypeError where it is none.
const at::Tensor& tensor_in(const py::handle& object) {
  if (!is_tensor(object.ptr()))
    throw py::type_error(std::string("expected a Tensor, not ") + Py_TYPE(object.ptr())->tp_name);
  return unpack(object.ptr());
}

/// The same of a plain tensor of one element, which lies within its storage.
const at::Tensor& number_in(const py::handle& object) {
  const at::Tensor& tensor = tensor_in(object);
  const c10::TensorImpl& impl = *tensor.unsafeGetTensorImpl();
  if (!is_plain(impl) || tensor.numel() != 1 || !lies_within_storage(impl))
    throw py::value_error("expected a plain tensor of one element");
  return tensor;
}

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

/// None, or why torch's own step has to do it. `name`: the optimizer's, for errors.
py::object step(int rule, const char* name, const py::object& param_groups, const py::object& state,
                const py::object& grad_scale, const py::object& found_inf, StepOptions* asked,
                Exchange* exchange) {
  if (rule < 0 || rule >= kNumRules) throw py::index_error("no such rule");
  // As they are now: what runs meanwhile may change them.
  const StepOptions options = asked == nullptr ? StepOptions() : *asked;
  Found found{options.grad_norm, options.skipped_steps};
  const StepInExchange in_exchange(exchange);
  return answer_of([&] {
    Amp amp(grad_scale.ptr(), found_inf.ptr());
    if (amp.has_overflowed() && !options.any()) return;
    Gathered gathered = gather(rule, name, param_groups.ptr(), state.ptr(), amp, options);
    step_gathered(gathered, amp, options, state.ptr(), found);
    if (asked != nullptr) asked->publish(found);
  });
}

/// The answer that step would give, without a step.
py::object why_not_fused(int rule, const char* name, const py::object& param_groups,
                         const py::object& state, const StepOptions& options) {
  if (rule < 0 || rule >= kNumRules) throw py::index_error("no such rule");
  return answer_of([&] {
    Amp amp(Py_None, Py_None);
    gather(rule, name, param_groups.ptr(), state.ptr(), amp, options);
  });
}

/// Steps through the CUDA kernels' body on the host, with AMP's tensors, float32 step counters and
/// scalar states read and advanced by the kernels, as on a device. Returns the number of launches.
int step_on_host(int rule, const py::object& param_groups, const py::object& state,
                 const py::object& grad_scale, const py::object& found_inf, StepOptions* asked,
                 uint32_t blocks, uint32_t threads) {
  if (rule < 0 || rule >= kNumRules) throw py::index_error("no such rule");
  const auto address = [](const py::object& tensor) {
    return tensor.is_none() ? nullptr : number_in(tensor).const_data_ptr<float>();
  };
  StepOptions options = asked == nullptr ? StepOptions() : *asked;
  DeviceInputs inputs{address(grad_scale), address(found_inf)};
  Amp amp(Py_None, Py_None);
  Gathered gathered =
      gather(rule, kRules[rule].name, param_groups.ptr(), state.ptr(), amp, options);
  for (const HostStep& step : gathered.steps)
    if (step.dtype == DType::Float32)
      gathered.table.entries[step.entry].device_step = static_cast<float*>(step.data);
  std::erase_if(gathered.steps, [](const HostStep& s) { return s.dtype == DType::Float32; });
  for (ScalarStates& states : gathered.table.scalar_states) states.on_device = true;
  Decision decision;
  if (options.needs_norm()) {
    Conclusion conclusion = conclusion_from(options);
    conclusion.decision = &decision;
    conclusion.grad_scale = inputs.grad_scale;
    conclusion.found_inf = inputs.found_inf;
    conclusion.draw(cuda::norm_on_host(gathered.gradients, options.norm_type(), blocks));
    inputs.decision = &decision;
  }
  NewStateObjects created(gathered.new_states);
  created.link(state.ptr());
  commit(gathered);
  int launches = 0;
  for_each_bucket(gathered.table, [&](const Bucket& bucket) {
    launches += cuda::run_on_host(bucket, inputs, blocks, threads);
  });
  finish(gathered);
  return launches;
}

/// None where there is none.
py::object wrap(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(object_of(tensor));
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

/// Both at once through the CUDA kernels' bodies on the host. Returns the norm.
double clip_on_host(const py::object& gradients, double norm_type, double max_norm,
                    uint32_t blocks) {
  const Gradients read = read_gradients(gradients.ptr());
  const double norm = cuda::norm_on_host(read, read_norm_type(norm_type, gradients.ptr()), blocks);
  cuda::scale_on_host(read, norm, max_norm, blocks);
  return norm;
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
  if (rule < 0 || rule >= kNumRules) throw py::index_error("no such rule");
  const RuleSpec& spec = kRules[rule];
  py::list found;
  const auto add = [&](const char* name, const char* enabled_by, bool is_scalar) {
    const py::object switch_name =
        enabled_by == nullptr ? py::none() : py::object(py::str(enabled_by));
    found.append(py::make_tuple(name, switch_name, is_scalar));
  };
  if (spec.has_step) add("step", nullptr, true);
  for (int i = 0; i < spec.num_scalar_states; ++i) add(spec.scalar_states[i].name, nullptr, true);
  for (int i = 0; i < spec.num_states; ++i)
    add(spec.states[i].name, spec.states[i].enabled_by, false);
  return found;
}

std::vector<std::string> scalar_states(int rule) {
  if (rule < 0 || rule >= kNumRules) throw py::index_error("no such rule");
  std::vector<std::string> names;
  for (int i = 0; i < kRules[rule].num_scalar_states; ++i)
    names.emplace_back(kRules[rule].scalar_states[i].name);
  return names;
}

template <at::Tensor StepOptions::* tensor>
py::object get(const StepOptions& options) {
  return wrap(options.*tensor);
}

template <at::Tensor StepOptions::* tensor>
void set(StepOptions& options, const py::object& value) {
  const at::Tensor replaced = options.*tensor;  // dropped last: that may run a finalizer
  options.*tensor = value.is_none() ? at::Tensor() : tensor_in(value);
}

/// The context in which parameters hold their averages. Python calls its two methods without a
/// frame of Python's between, where a signal handler could keep the second from being called.
class ExchangeContext {
 public:
  ExchangeContext(std::string optimizer, std::shared_ptr<Exchange> exchange)
      : optimizer_(std::move(optimizer)), exchange_(std::move(exchange)) {}

  /// `find_pairs()`: a list of (group, index, parameter, average).
  void enter(const py::object& find_pairs) {
    const py::list found = find_pairs();
    std::vector<ExchangePair> pairs;
    for (const py::handle& item : found) {
      const auto& [group, index, param, average] =
          item.cast<std::tuple<Py_ssize_t, Py_ssize_t, py::object, py::object>>();
      if (!is_tensor(average.ptr()))
        Where{optimizer_.c_str(), group, index}.fail(
            kAverageName, std::string("is no tensor but ") + Py_TYPE(average.ptr())->tp_name);
      pairs.push_back({group, index, tensor_in(param), tensor_in(average)});
    }
    try {
      exchange_->begin(optimizer_, std::move(pairs));
      has_begun_ = true;
    } catch (python_error& error) {
      rethrow(error);
    }
  }

  void exit() {
    if (!std::exchange(has_begun_, false)) return;
    try {
      exchange_->end();
    } catch (python_error& error) {
      rethrow(error);
    }
  }

 private:
  std::string optimizer_;
  std::shared_ptr<Exchange> exchange_;
  bool has_begun_ = false;
};

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
  py::class_<StepOptions>(m, "StepOptions")
      .def(py::init<>())
      .def_readwrite("max_grad_norm", &StepOptions::max_grad_norm)
      .def_readwrite("skip_nonfinite", &StepOptions::skip_nonfinite)
      .def_readwrite("zero_grads", &StepOptions::zero_grads)
      .def_readwrite("ema_decay", &StepOptions::ema_decay)
      .def_property_readonly("any", &StepOptions::any)
      .def_property_readonly("needs_norm", &StepOptions::needs_norm)
      .def_property("grad_norm", get<&StepOptions::grad_norm>, set<&StepOptions::grad_norm>)
      .def_property("skipped_steps", get<&StepOptions::skipped_steps>,
                    set<&StepOptions::skipped_steps>);
  m.def("step", &step, py::arg("rule"), py::arg("name"), py::arg("param_groups"), py::arg("state"),
        py::arg("grad_scale"), py::arg("found_inf"), py::arg("options"), py::arg("exchange"));
  m.def("why_not_fused", &why_not_fused, py::arg("rule"), py::arg("name"), py::arg("param_groups"),
        py::arg("state"), py::arg("options"));
  m.def("step_on_host", &step_on_host, py::arg("rule"), py::arg("param_groups"), py::arg("state"),
        py::arg("grad_scale"), py::arg("found_inf"), py::arg("options"), py::arg("blocks"),
        py::arg("threads"));
  m.def("grad_norm", &grad_norm, py::arg("gradients"), py::arg("norm_type"));
  m.def("clip_grads", &clip_grads, py::arg("gradients"), py::arg("norm"), py::arg("max_norm"));
  m.def("clip_on_host", &clip_on_host, py::arg("gradients"), py::arg("norm_type"),
        py::arg("max_norm"), py::arg("blocks"));
  py::class_<Exchange, std::shared_ptr<Exchange>>(m, "Exchange")
      .def(py::init<>())
      .def_property_readonly("is_active", &Exchange::is_active)
      .def("__enter__", &Exchange::begin_step)
      .def("__exit__", [](Exchange& exchange, const py::args&) { exchange.end_step(); });
  // What finds the pairs is an attribute of the Python object, where the collector sees it.
  py::class_<ExchangeContext>(m, "ExchangeContext")
      .def(py::init<std::string, std::shared_ptr<Exchange>>())
      .def("__enter__",
           [](const py::object& self) {
             self.cast<ExchangeContext&>().enter(self.attr("find_pairs"));
           })
      .def("__exit__", [](ExchangeContext& context, const py::args&) { context.exit(); });
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
