#include "gather/across_ranks.h"

#include <torch/csrc/utils/object_ptr.h>

#include "base/errors.h"
#include "gather/lookup.h"
#include "gather/python_tensor.h"

namespace fused_optim {

Contributions AcrossRanks::exchange_sums(const at::Tensor& sums) const {
  THPObjectPtr object(object_of(sums));
  THPObjectPtr answer(object ? PyObject_CallOneArg(exchange, object.get()) : nullptr);
  if (!answer) throw PythonError();
  if (answer.get() == Py_None) throw NotFusedAsExpected("another rank takes torch's own step");
  if (!PyTuple_CheckExact(answer.get()) || PyTuple_GET_SIZE(answer.get()) != 2)
    throw std::logic_error("fused_optim: exchange() returned no pair");
  PyObject* contributions = PyTuple_GET_ITEM(answer.get(), 0);
  PyObject* found_inf = PyTuple_GET_ITEM(answer.get(), 1);
  if (!is_plain_type(contributions))
    throw std::logic_error("fused_optim: exchange() returned no tensor");
  Contributions result{unpack(contributions)};
  if (result.sums.scalar_type() != at::kDouble || !result.sums.is_contiguous())
    throw std::logic_error("fused_optim: exchange() returned no float64 in a row");
  if (is_plain_type(found_inf))
    result.found_inf = unpack(found_inf);
  else
    result.has_overflowed = found_inf == Py_True;
  return result;
}

}  // namespace fused_optim
