#include "run/exchange.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <exception>
#include <stdexcept>

#include "tensors/layout.h"
#include "tensors/new_tensors.h"
#include "tensors/overlap.h"

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
  if (may_share_elements(tensor)) where.fail(name, "may have elements that share memory");
}

void check(const Where& where, const ExchangePair& pair) {
  const at::Tensor &param = pair.param, &average = pair.average;
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

/// Elements that pass through a buffer at a time, where both tensors lie alike in dense memory.
constexpr int64_t kChunk = 1 << 18;

bool is_chunked(const ExchangePair& pair) {
  return are_plain(pair) && pair.param.is_non_overlapping_and_dense() &&
         pair.average.is_non_overlapping_and_dense() &&
         same_layout(impl(pair.param), impl(pair.average));
}

/// Buffers for all pairs; those that are chunked share one of each dtype and device.
void add_buffers(std::vector<ExchangePair>& pairs) {
  std::vector<at::Tensor> shared;
  for (ExchangePair& pair : pairs) {
    if (pair.is_of_two_dtypes()) {
      pair.own_param = pair.param.clone();
      pair.own_average = pair.average.clone();
      continue;
    }
    if (!are_plain(pair)) continue;
    if (!is_chunked(pair)) {
      pair.buffer = empty(pair.param.sizes(), pair.param.options());
      continue;
    }
    for (const at::Tensor& buffer : shared)
      if (buffer.dtype() == pair.param.dtype() && buffer.device() == pair.param.device())
        pair.buffer = buffer;
    if (pair.buffer.defined()) continue;
    pair.buffer = empty({kChunk}, pair.param.options());
    shared.push_back(pair.buffer);
  }
}

void swap_through(const at::Tensor& buffer, const at::Tensor& a, const at::Tensor& b) {
  buffer.copy_(a);
  a.copy_(b);
  b.copy_(buffer);
}

/// Takes no memory for elements, so that a full one can't keep parameters from coming back.
void swap_plain(const ExchangePair& pair) {
  // Memory may have been replaced since: then torch's copies say what is wrong, before they write.
  if (pair.param.sizes() != pair.average.sizes() || !is_chunked(pair) || pair.buffer.dim() != 1 ||
      pair.buffer.dtype() != pair.param.dtype() || pair.buffer.device() != pair.param.device())
    return swap_through(pair.buffer.sizes() == pair.param.sizes()
                            ? pair.buffer
                            : empty_like(pair.param, pair.param.scalar_type()),
                        pair.param, pair.average);
  const int64_t numel = pair.param.numel();
  const at::Tensor param = pair.param.as_strided({numel}, {1});
  const at::Tensor average = pair.average.as_strided({numel}, {1});
  for (int64_t first = 0; first < numel; first += kChunk) {
    const int64_t size = std::min(kChunk, numel - first);
    swap_through(pair.buffer.narrow(0, 0, size), param.narrow(0, first, size),
                 average.narrow(0, first, size));
  }
}

/// Gives both what the other one has, or back what was their own. Again where it is done already:
/// then nothing changes.
void swap_of_two_dtypes(ExchangePair& pair) {
  const bool is_back = pair.is_exchanged;
  pair.is_exchanged = true;  // where a copy fails, both have to be given back
  pair.param.copy_(is_back ? pair.own_param : pair.own_average);
  pair.average.copy_(is_back ? pair.own_average : pair.own_param);
  pair.is_exchanged = !is_back;
}

/// Operations on tensors of other kinds may run any code, and are undone where it fails.
void swap_values(ExchangePair& pair) {
  const at::Tensor &param = pair.param, &average = pair.average;
  for (const at::Tensor& wrapper : pair.wrappers) wrapper.unsafeGetTensorImpl()->bump_version();
  if (pair.own_param.defined()) return swap_of_two_dtypes(pair);
  if (are_plain(pair)) return swap_plain(pair);
  const at::Tensor param_before = param.clone(), average_before = average.clone();
  try {
    param.copy_(average_before);
    average.copy_(param_before);
  } catch (...) {
    param.copy_(param_before);
    average.copy_(average_before);
    throw;
  }
}

/// Tried twice, as code that runs for tensors of other kinds can be interrupted. Returns what the
/// first try met with.
std::exception_ptr swap_values_back(ExchangePair& pair) {
  try {
    swap_values(pair);
    return nullptr;
  } catch (...) {
    swap_values(pair);
    return std::current_exception();
  }
}

}  // namespace

void Exchange::begin_step() {
  if (is_active_)
    throw std::runtime_error("step() inside ema_parameters(): the averages would be trained");
  ++steps_;
}

void Exchange::begin(std::string optimizer, std::vector<ExchangePair> pairs) {
  if (is_active_) throw std::runtime_error("ema_parameters() inside ema_parameters()");
  if (steps_ > 0) throw std::runtime_error("ema_parameters() inside step()");
  const at::NoGradGuard no_grad;
  for (const ExchangePair& pair : pairs) check(where_of(optimizer, pair), pair);
  check_overlap(optimizer, pairs);
  add_buffers(pairs);
  optimizer_ = std::move(optimizer);
  pairs_ = std::move(pairs);
  is_active_ = true;
  swap_all();
}

void Exchange::swap_all() {
  size_t done = 0;
  try {
    for (; done < pairs_.size(); ++done) swap_values(pairs_[done]);
  } catch (...) {
    pairs_.resize(done);
    const std::exception_ptr met = std::current_exception();
    end();
    std::rethrow_exception(met);
  }
}

void Exchange::end() {
  if (!is_active_) return;
  const at::NoGradGuard no_grad;
  std::string lost;
  std::exception_ptr interrupted;
  for (size_t i = pairs_.size(); i-- > 0;) {
    try {
      if (auto met = swap_values_back(pairs_[i])) interrupted = met;
    } catch (const std::exception& error) {
      lost += "\n" + where_of(optimizer_, pairs_[i]).text("param") + ": " + error.what();
    }
  }
  pairs_.clear();
  is_active_ = false;
  if (!lost.empty())
    throw std::runtime_error("ema_parameters(): these parameters still hold their averages:" +
                             lost);
  if (interrupted) std::rethrow_exception(interrupted);
}

}  // namespace fused_optim
