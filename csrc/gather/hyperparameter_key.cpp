#include "gather/hyperparameter_key.h"

#include <cmath>
#include <string>
#include <string_view>
#include <utility>

#include "base/errors.h"

namespace fused_optim {
namespace {

/// Outside, torch's own step does something else than the formula says: it divides by zero, a
/// number overflows its dtype, a state is there only where a value is above zero, or (Rprop) a
/// gradient is dropped wherever its factor equals etas[0].
std::pair<double, double> usual_range_of(std::string_view name) {
  // Beyond it a product or quotient of several values could leave float's range.
  constexpr double kLargest = 1e15;
  const double below_1 = std::nextafter(1.0, 0.0);
  if (name.starts_with("betas[")) return {0.0, below_1};
  // A factor that is 0 in the parameter's dtype is 1 to torch: above the least of float16.
  if (name == "etas[0]") return {1e-7, below_1};
  if (name == "alpha") return {-4.0, 4.0};  // ASGD's exponent
  return {name == "etas[1]" ? 1.0 : 0.0, kLargest};
}

}  // namespace

std::vector<HyperparameterKey> intern_hyperparameters(const RuleSpec& rule) {
  std::vector<HyperparameterKey> keys;
  for (int i = 0; i < rule.num_hyperparameters; ++i) {
    const std::string name = rule.hyperparameters[i];
    const size_t bracket = name.find('[');
    const Py_ssize_t item = bracket == std::string::npos ? -1 : std::stol(name.substr(bracket + 1));
    PyObject* key = PyUnicode_InternFromString(name.substr(0, bracket).c_str());
    if (key == nullptr) throw PythonError();
    const auto [lowest, highest] = usual_range_of(name);
    const bool is_flag = name == "amsgrad" || name == "decoupled_weight_decay" ||
                         name == "nesterov" || name == "centered";
    keys.push_back({key, item, lowest, highest, is_flag});
  }
  return keys;
}

}  // namespace fused_optim
