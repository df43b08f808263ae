// What Python enters and leaves by `with`.
#include <memory>
#include <tuple>

#include "bindings.h"
#include "run/exchange.h"
#include "run/signals_later.h"

namespace fused_optim {
namespace {

/// The context in which parameters hold their averages. Python calls its two methods without a
/// frame of Python's between, where a signal handler could keep the second from being called.
class ExchangeContext {
 public:
  ExchangeContext(std::string optimizer, std::shared_ptr<Exchange> exchange)
      : optimizer_(std::move(optimizer)), exchange_(std::move(exchange)) {}

  /// `find_pairs()`: a list of (group, index, parameter, average, DTensors around them).
  void enter(const py::object& find_pairs) {
    const py::list found = find_pairs();
    std::vector<ExchangePair> pairs;
    for (const py::handle& item : found) {
      const auto& [group, index, param, average, wrappers] =
          item.cast<std::tuple<int64_t, int64_t, py::object, py::object, py::list>>();
      if (!is_tensor(average.ptr()))
        Where{optimizer_.c_str(), group, index}.fail(
            kAverageName, std::string("is no tensor but ") + Py_TYPE(average.ptr())->tp_name);
      pairs.push_back({group, index, tensor_in(param), tensor_in(average)});
      for (const py::handle& wrapper : wrappers)
        pairs.back().wrappers.push_back(tensor_in(wrapper));
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

}  // namespace

void add_bindings_for_contexts(py::module_& m) {
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
  SignalsLater::prepare();
  py::class_<SignalsLater>(m, "SignalsLater")
      .def(py::init<>())
      .def("__enter__", &SignalsLater::enter)
      .def("__exit__", [](SignalsLater& signals, const py::args&) { signals.exit(); });
}

}  // namespace fused_optim
