#include "exchange.h"

#include <ATen/ops/clone.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <exception>
#include <stdexcept>

#include "gather_options.h"
#include "layout.h"
#include "overlap.h"

namespace fused_optim {
namespace {

const c10::TensorImpl& impl(const at::Tensor& tensor) {
  return *tensor.unsafeGetTensorImpl();
}

Where where_of(const std::string& optimizer, const ExchangePair& pair) {
  return {optimizer.c_str(), pair.group, pair.index};
}

bool are_plain(const ExchangePair& pair) {
  return is_plain(impl(pair.param)) && is_plain(impl(pair.average));
}

void check_memory(const Where& where, const c10::TensorImpl& tensor, const char* name) {
  if (!lies_within_storage(tensor)) where.fail(name, "reaches beyond its storage");
  if (may_share_elements(tensor)) where.fail(name, "has elements that share memory");
}

void check(const Where& where, const ExchangePair& pair) {
  const auto& [group, index, param, average] = pair;
  check_same_kind(where, impl(param), impl(average), kAverageName);
  for (const auto& [tensor, name] : {std::pair{param, "param"}, std::pair{average, kAverageName}}) {
    if (tensor.is_inference() && !c10::InferenceMode::is_enabled())
      where.fail(name, "is an inference tensor: it can be written in inference mode alone");
    if (is_plain(impl(tensor))) check_memory(where, impl(tensor), name);
  }
}

/// Whether any memory of the first `count` pairs is there twice.
bool do_overlap(const std::vector<ExchangePair>& pairs, size_t count) {
  std::vector<Interval> intervals;
  for (size_t i = 0; i < count; ++i)
    if (are_plain(pairs[i]))
      for (const at::Tensor& tensor : {pairs[i].param, pairs[i].average})
        add_runs(impl(tensor), intervals);
  return do_overlap(std::move(intervals));
}

void check_overlap(const std::string& optimizer, const std::vector<ExchangePair>& pairs) {
  StorageCheck storages(2 * static_cast<int64_t>(pairs.size()));
  for (const ExchangePair& pair : pairs)
    if (are_plain(pair) && pair.param.numel() > 0)
      for (const at::Tensor& tensor : {pair.param, pair.average})
        storages.add(*impl(tensor).unsafe_storage().unsafeGetStorageImpl());
  if (!storages.may_overlap() || !do_overlap(pairs, pairs.size())) return;
  // The first pair that overlaps any before it, or itself.
  size_t low = 0, high = pairs.size() - 1;
  while (low < high) {
    const size_t middle = (low + high) / 2;
    if (do_overlap(pairs, middle + 1))
      high = middle;
    else
      low = middle + 1;
  }
  where_of(optimizer, pairs[low])
      .fail(kAverageName,
            "or its parameter shares memory with another average or parameter, so that they can't "
            "be exchanged");
}

/// Of plain tensors nothing but the copy that is made first can fail. Others may run any code, and
/// are put back as they were.
void swap_values(const ExchangePair& pair) {
  const auto& [group, index, param, average] = pair;
  const at::Tensor param_before = param.clone();
  const at::Tensor average_before = are_plain(pair) ? at::Tensor() : average.clone();
  try {
    param.copy_(average);
    average.copy_(param_before);
  } catch (...) {
    param.copy_(param_before);
    if (average_before.defined()) average.copy_(average_before);
    throw;
  }
}

/// Tried twice, as code that runs for tensors of other kinds can be interrupted. Returns what the
/// first try met with.
std::exception_ptr swap_values_back(const ExchangePair& pair) {
  try {
    swap_values(pair);
    return nullptr;
  } catch (...) {
    swap_values(pair);
    return std::current_exception();
  }
}

}  // namespace

void Exchange::begin(std::string optimizer, std::vector<ExchangePair> pairs) {
  if (is_active_) throw std::runtime_error("ema_parameters() inside ema_parameters()");
  const at::NoGradGuard no_grad;
  for (const ExchangePair& pair : pairs) check(where_of(optimizer, pair), pair);
  check_overlap(optimizer, pairs);
  size_t done = 0;
  try {
    for (; done < pairs.size(); ++done) swap_values(pairs[done]);
  } catch (...) {
    while (done-- > 0) swap_values_back(pairs[done]);
    throw;
  }
  optimizer_ = std::move(optimizer);
  pairs_ = std::move(pairs);
  is_active_ = true;
}

void Exchange::end() {
  if (!is_active_) return;
  const at::NoGradGuard no_grad;
  const std::vector<ExchangePair> pairs = std::move(pairs_);
  pairs_.clear();
  is_active_ = false;
  std::string lost;
  std::exception_ptr interrupted;
  for (size_t i = pairs.size(); i-- > 0;) {
    try {
      if (auto met = swap_values_back(pairs[i])) interrupted = met;
    } catch (const std::exception& error) {
      lost += "\n" + where_of(optimizer_, pairs[i]).text("param") + ": " + error.what();
    }
  }
  if (!lost.empty())
    throw std::runtime_error("ema_parameters(): these parameters still hold their averages:" +
                             lost);
  if (interrupted) std::rethrow_exception(interrupted);
}

}  // namespace fused_optim
