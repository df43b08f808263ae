// The Python module fused_optim._C: the only file that Python calls.
#include <c10/core/TensorImpl.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/autograd/python_variable.h>

#include <cstdlib>

#include "cpu/isa.h"
#include "cpu/parallel.h"
#include "cuda/engine.h"
#include "cuda/host_run.h"
#include "decide.h"
#include "finish.h"
#include "gather.h"
#include "launch.h"
#include "lookup.h"
#include "norm/total_norm.h"
#include "rules/registry.h"

namespace py = pybind11;

namespace fused_optim {
namespace {

// The GIL is released where the step takes milliseconds, and where keeping the tensors alive
// without it (0.3 us a parameter) costs little beside its update: 16,384 elements take 7 us.
constexpr int64_t kReleaseGilElements = 1 << 22;
constexpr int64_t kReleaseGilElementsPerTensor = 1 << 14;

/// Owns what a step borrows while other Python threads may drop their references to it.
class KeepAlive {
 public:
  explicit KeepAlive(const Gathered& gathered) {
    for (const auto* tensors : {&gathered.written, &gathered.read})
      for (c10::TensorImpl* tensor : *tensors)
        tensors_.push_back(
            c10::intrusive_ptr<c10::TensorImpl>::unsafe_reclaim_from_nonowning(tensor));
    for (const NewState& created : gathered.new_states) {
      objects_.push_back(py::reinterpret_borrow<py::object>(created.param));
      objects_.push_back(py::reinterpret_borrow<py::object>(created.existing));
    }
  }

 private:
  std::vector<c10::intrusive_ptr<c10::TensorImpl>> tensors_;
  std::vector<py::object> objects_;
};

/// Launches on a GPU don't take the host long enough.
bool is_worth_releasing_gil(const TensorTable& table) {
  int64_t elements = 0, tensors = 0;
  for (const TensorEntry& entry : table.entries) {
    if (entry.device.kind != DeviceKind::CPU) continue;
    elements += entry.numel;
    ++tensors;
  }
  return elements >= kReleaseGilElements && elements >= kReleaseGilElementsPerTensor * tensors;
}

void step_gathered(Gathered& gathered, const Amp& amp, StepOptions& options, PyObject* state) {
  prepare(gathered.table);
  std::optional<KeepAlive> keep_alive;
  if (is_worth_releasing_gil(gathered.table)) keep_alive.emplace(gathered);
  const auto without_gil = [&](auto work) {
    std::optional<py::gil_scoped_release> no_gil;
    if (keep_alive) no_gil.emplace();
    return work();
  };
  if (!without_gil([&] { return decide(gathered, amp, options); })) {
    finish_skipped(gathered);
    return;
  }
  commit(gathered, state);
  without_gil([&] { launch(gathered.table); });
  finish(gathered);
}

/// None, or why torch's own step has to do it.
py::object step(int rule, const py::object& param_groups, const py::object& state,
                const py::object& grad_scale, const py::object& found_inf, StepOptions* asked) {
  if (rule < 0 || rule >= kNumRules) throw py::index_error("no such rule");
  StepOptions none;
  StepOptions& options = asked == nullptr ? none : *asked;
  try {
    Amp amp(grad_scale.ptr(), found_inf.ptr());
    if (amp.has_overflowed() && !options.any()) return py::none();
    Gathered gathered = gather(rule, param_groups.ptr(), state.ptr(), amp, options);
    step_gathered(gathered, amp, options, state.ptr());
    return py::none();
  } catch (const NotFused& reason) {
    return py::str(reason.what());
  } catch (const PythonError&) {
    throw py::error_already_set();
  }
}

/// Steps through the CUDA kernels' body on the host, with AMP's tensors, float32 step counters and
/// scalar states read and advanced by the kernels, as on a device. Returns the number of launches.
int step_on_host(int rule, const py::object& param_groups, const py::object& state,
                 const py::object& grad_scale, const py::object& found_inf, StepOptions* asked,
                 uint32_t blocks, uint32_t threads) {
  if (rule < 0 || rule >= kNumRules) throw py::index_error("no such rule");
  const auto address = [](const py::object& tensor) {
    return tensor.is_none() ? nullptr : THPVariable_Unpack(tensor.ptr()).const_data_ptr<float>();
  };
  StepOptions options = asked == nullptr ? StepOptions() : *asked;
  DeviceInputs inputs{address(grad_scale), address(found_inf)};
  Amp amp(Py_None, Py_None);
  Gathered gathered = gather(rule, param_groups.ptr(), state.ptr(), amp, options);
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
  commit(gathered, state.ptr());
  int launches = 0;
  for_each_bucket(gathered.table, [&](const Bucket& bucket) {
    launches += cuda::run_on_host(bucket, inputs, blocks, threads);
  });
  finish(gathered);
  return launches;
}

/// None where there is none.
py::object wrap(const at::Tensor& tensor) {
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(tensor));
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

/// Scales a list of gradients that grad_norm took, by the norm that it gave.
void clip_grads(const py::object& gradients, const py::object& norm, double max_norm) {
  const Gradients read = read_gradients(gradients.ptr());
  if (!clip(read, THPVariable_Unpack(norm.ptr()), max_norm)) return;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(gradients.ptr()); ++i)
    THPVariable_Unpack(PyList_GET_ITEM(gradients.ptr(), i)).unsafeGetTensorImpl()->bump_version();
}

/// Both at once through the CUDA kernels' bodies on the host. Returns the norm.
double clip_on_host(const py::object& gradients, double norm_type, double max_norm,
                    uint32_t blocks) {
  const Gradients read = read_gradients(gradients.ptr());
  const double norm = cuda::norm_on_host(read, read_norm_type(norm_type, gradients.ptr()), blocks);
  cuda::scale_on_host(read, norm, max_norm, blocks);
  return norm;
}

std::vector<std::string> rules() {
  std::vector<std::string> names;
  for (const RuleSpec& spec : kRules) names.emplace_back(spec.name);
  return names;
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
  options.*tensor = value.is_none() ? at::Tensor() : THPVariable_Unpack(value.ptr());
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
  initialize_lookup(py::module_::import("torch.nn").attr("Parameter").ptr());
  py::class_<StepOptions>(m, "StepOptions")
      .def(py::init<>())
      .def_readwrite("max_grad_norm", &StepOptions::max_grad_norm)
      .def_readwrite("skip_nonfinite", &StepOptions::skip_nonfinite)
      .def_readwrite("zero_grads", &StepOptions::zero_grads)
      .def_readwrite("ema_decay", &StepOptions::ema_decay)
      .def_property("grad_norm", get<&StepOptions::grad_norm>, set<&StepOptions::grad_norm>)
      .def_property("skipped_steps", get<&StepOptions::skipped_steps>,
                    set<&StepOptions::skipped_steps>);
  m.def("step", &step, py::arg("rule"), py::arg("param_groups"), py::arg("state"),
        py::arg("grad_scale"), py::arg("found_inf"), py::arg("options"));
  m.def("step_on_host", &step_on_host, py::arg("rule"), py::arg("param_groups"), py::arg("state"),
        py::arg("grad_scale"), py::arg("found_inf"), py::arg("options"), py::arg("blocks"),
        py::arg("threads"));
  m.def("grad_norm", &grad_norm, py::arg("gradients"), py::arg("norm_type"));
  m.def("clip_grads", &clip_grads, py::arg("gradients"), py::arg("norm"), py::arg("max_norm"));
  m.def("clip_on_host", &clip_on_host, py::arg("gradients"), py::arg("norm_type"),
        py::arg("max_norm"), py::arg("blocks"));
  m.def("rules", &rules);
  m.def("scalar_states", &scalar_states, py::arg("rule"));
  m.def("built_isas", &cpu::built_isas);
  m.def("isa", [] { return std::string(cpu::isa_name(cpu::current_isa())); });
  m.def("set_isa", &cpu::set_isa);
  m.def("cuda_archs", &cuda::built_archs);
  m.def("openmp_runtime", [] { return std::string(cpu::openmp_runtime()); });
}

}  // namespace fused_optim
