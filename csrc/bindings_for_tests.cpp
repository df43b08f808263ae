// What only tests call: the CUDA kernels' bodies, run on the host.
#include <cstdint>

#include "bindings.h"
#include "cuda/host_run.h"
#include "gather/gather.h"
#include "gather/gradient_list.h"
#include "rules/registry.h"
#include "run/after_kernels.h"
#include "run/clip_and_skip.h"
#include "run/commit.h"
#include "run/launch.h"

namespace fused_optim {
namespace {

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
      gather({rule, kRules[rule].name, param_groups.ptr(), state.ptr(), Py_None, Py_None, nullptr},
             amp, options);
  TensorTable& table = gathered.table;
  const bool has_step = kRules[rule].has_step;
  for (TensorEntry& entry : table.entries) {
    OneElementState* states = table.one_element_states_of(entry);
    for (int i = 0; i < table.num_one_element; ++i) {
      const bool is_step = has_step && i == 0;
      if (is_step && states[i].format != Format::Float32) continue;  // no device has others
      states[i].is_on_device = true;
      if (is_step) entry.device_step = static_cast<float*>(states[i].data);
    }
  }
  for (CompactEntry& compact : table.compact)
    compact.counter.is_on_device =
        compact.counter.data != nullptr && compact.counter.format == Format::Float32;
  Decision decision;
  if (options.needs_norm()) {
    ClipAndSkip rule = clip_and_skip_from(options);
    rule.decision = &decision;
    rule.grad_scale = inputs.grad_scale;
    rule.found_inf = inputs.found_inf;
    rule.decide(cuda::norm_on_host(gathered.gradients, options.norm_type(), blocks));
    inputs.decision = &decision;
  }
  NewStateObjects created(gathered.new_states);
  created.link(state.ptr());
  commit(gathered);
  int launches = 0;
  for_each_bucket(gathered.table, BucketsOf::Cuda, [&](const Bucket& bucket) {
    launches += cuda::run_on_host(bucket, inputs, blocks, threads);
  });
  after_kernels(gathered);
  return launches;
}

/// Both at once through the CUDA kernels' bodies on the host. Returns the norm.
double clip_on_host(const py::object& gradients, double norm_type, double max_norm,
                    uint32_t blocks) {
  const Gradients read = read_gradients(gradients.ptr());
  const double norm = cuda::norm_on_host(read, read_norm_type(norm_type, gradients.ptr()), blocks);
  cuda::scale_on_host(read, norm, max_norm, blocks);
  return norm;
}

}  // namespace

void add_bindings_for_tests(py::module_& m) {
  m.def("step_on_host", &step_on_host, py::arg("rule"), py::arg("param_groups"), py::arg("state"),
        py::arg("grad_scale"), py::arg("found_inf"), py::arg("options"), py::arg("blocks"),
        py::arg("threads"));
  m.def("clip_on_host", &clip_on_host, py::arg("gradients"), py::arg("norm_type"),
        py::arg("max_norm"), py::arg("blocks"));
}

}  // namespace fused_optim
