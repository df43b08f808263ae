// Step options as Python reads and writes them.
#include <pybind11/stl.h>

#include "bindings.h"
#include "gather/step_options.h"

namespace fused_optim {
namespace {

py::object get_state_dtype(const StepOptions& options) {
  return py::reinterpret_steal<py::object>(object_of(*options.state_dtypes));
}

void set_state_dtype(StepOptions& options, const py::object& value) {
  options.state_dtypes = std::make_shared<StateDtypes>(read_state_dtypes(value.ptr()));
}

py::object get_ema_dtype(const StepOptions& options) {
  if (!options.ema_dtype) return py::none();
  return py::reinterpret_steal<py::object>(object_of(*options.ema_dtype));
}

void set_ema_dtype(StepOptions& options, const py::object& value) {
  if (value.is_none())
    options.ema_dtype.reset();
  else
    options.ema_dtype = read_dtype(value.ptr(), false);
}

std::optional<int> get_master_bits(const StepOptions& options) {
  return options.master_bits == 0 ? std::nullopt : std::optional(options.master_bits);
}

void set_master_bits(StepOptions& options, std::optional<int> bits) {
  options.master_bits = bits.value_or(0);
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

}  // namespace

void add_bindings_for_options(py::module_& m) {
  py::register_local_exception<StepOptionInGroup>(m, "StepOptionInGroup", PyExc_RuntimeError);
  py::class_<StepOptions>(m, "StepOptions")
      .def(py::init<>())
      .def_readwrite("max_grad_norm", &StepOptions::max_grad_norm)
      .def_readwrite("skip_nonfinite", &StepOptions::skip_nonfinite)
      .def_readwrite("zero_grads", &StepOptions::zero_grads)
      .def_readwrite("ema_decay", &StepOptions::ema_decay)
      .def_property("ema_dtype", get_ema_dtype, set_ema_dtype)
      .def_property("state_dtype", get_state_dtype, set_state_dtype)
      .def_property("master_bits", get_master_bits, set_master_bits)
      .def_readwrite("stochastic_rounding", &StepOptions::stochastic_rounding)
      .def_readwrite("rounding_seed", &StepOptions::rounding_seed)
      .def_readwrite("has_compact", &StepOptions::has_compact)
      .def_property_readonly("any", &StepOptions::any)
      .def_property_readonly("needs_norm", &StepOptions::needs_norm)
      .def_property("grad_norm", get<&StepOptions::grad_norm>, set<&StepOptions::grad_norm>)
      .def_property("skipped_steps", get<&StepOptions::skipped_steps>,
                    set<&StepOptions::skipped_steps>);
}

}  // namespace fused_optim
