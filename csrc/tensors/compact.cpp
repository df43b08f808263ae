#include "tensors/compact.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "storage/moment_codes.h"
#include "storage/split_master.h"
#include "tensors/new_tensors.h"

namespace fused_optim {
namespace {

/// The bits of a value's magnitude. Codes without signs take a negative one for a NaN, which a step
/// makes of it: the block is one, too.
template <class Codes>
uint32_t magnitude_of(float value) {
  constexpr bool kHasSigns = std::is_signed_v<typename Codes::Code>;
  return !kHasSigns && value < 0.0f ? 0x7fc00000u : bits_as<uint32_t>(value) & 0x7fffffffu;
}

template <class Codes>
void encode_all(const float* values, int64_t numel, typename Codes::Code* codes, float* scales) {
  for (int64_t begin = 0; begin < numel; begin += kCodesInBlock, ++scales) {
    const int64_t end = std::min(numel, begin + kCodesInBlock);
    uint32_t largest = 0;
    for (int64_t i = begin; i < end; ++i)
      largest = std::max(largest, magnitude_of<Codes>(values[i]));
    *scales = Codes::scale_of(largest);
    const float factor = Codes::factor_of(*scales);
    for (int64_t i = begin; i < end; ++i) codes[i] = Codes::encode_to_nearest(values[i], factor);
  }
}

template <class Codes>
void decode_all(const typename Codes::Code* codes, const float* scales, int64_t numel,
                float* values) {
  for (int64_t i = 0; i < numel; ++i)
    values[i] = Codes::decode(codes[i], scales[i / kCodesInBlock]);
}

/// visit(Codes()) for the kind of this moment.
template <class Visit>
void with_codes(bool is_signed, Visit visit) {
  if (is_signed)
    visit(SignedCodes());
  else
    visit(UnsignedCodes());
}

at::Tensor empty_scales(const at::Tensor& like) {
  return empty({num_scales(like.numel())}, at::TensorOptions(at::kFloat).device(like.device()));
}

}  // namespace

at::ScalarType codes_dtype(Moment moment) {
  return moment == Moment::First ? at::kChar : at::kByte;
}

int64_t num_scales(int64_t numel) {
  return (numel + kCodesInBlock - 1) / kCodesInBlock;
}

Coded zeros_coded(const at::Tensor& like, Moment moment) {
  return {full_like(like, 0, codes_dtype(moment)), empty_scales(like).zero_()};
}

Coded encoded(const at::Tensor& values, Moment moment) {
  const at::Tensor on_host = values.detach().to(at::kCPU, at::kFloat);
  const Coded coded{empty_like(on_host, codes_dtype(moment)), empty_scales(on_host)};
  with_codes(moment == Moment::First, [&]<class Codes>(Codes) {
    encode_all<Codes>(on_host.const_data_ptr<float>(), on_host.numel(),
                      coded.codes.mutable_data_ptr<typename Codes::Code>(),
                      coded.scales.mutable_data_ptr<float>());
  });
  return {coded.codes.to(values.device()), coded.scales.to(values.device())};
}

at::Tensor decoded(const at::Tensor& codes, const at::Tensor& scales) {
  const at::Tensor on_host = codes.detach().to(at::kCPU), host_scales = scales.to(at::kCPU);
  const at::Tensor values = empty_like(on_host, at::kFloat);
  with_codes(codes.scalar_type() == at::kChar, [&]<class Codes>(Codes) {
    decode_all<Codes>(on_host.const_data_ptr<typename Codes::Code>(),
                      host_scales.const_data_ptr<float>(), on_host.numel(),
                      values.mutable_data_ptr<float>());
  });
  return values.to(codes.device());
}

namespace {

template <class Master>
bool keep_remainder(const float* saved, int64_t numel, typename Master::Remainder* kept) {
  using Limits = std::numeric_limits<typename Master::Remainder>;
  for (int64_t i = 0; i < numel; ++i) {
    const float units = saved[i] / static_cast<float>(1 << Master::kShift);
    // Nor is a NaN within these.
    if (!(units >= Limits::min() && units <= Limits::max())) return false;
    kept[i] = static_cast<typename Master::Remainder>(units);
    if (static_cast<float>(kept[i]) != units) return false;
  }
  return true;
}

}  // namespace

at::Tensor remainder_of_floats(const at::Tensor& saved, at::ScalarType dtype) {
  const at::Tensor on_host = saved.to(at::kCPU);
  const at::Tensor kept = empty_like(on_host, dtype);
  const auto keep = [&]<class Master>(Master) {
    return keep_remainder<Master>(
        on_host.const_data_ptr<float>(), on_host.numel(),
        static_cast<typename Master::Remainder*>(kept.mutable_data_ptr()));
  };
  const bool is_one = dtype == at::kShort ? keep(Master32()) : keep(Master24());
  return is_one ? kept : at::Tensor();
}

at::Tensor joined(const at::Tensor& param, const at::Tensor& remainder) {
  const at::Tensor high = param.detach().to(at::kCPU).contiguous();
  const at::Tensor low = remainder.detach().to(at::kCPU).contiguous();
  const at::Tensor masters = empty_like(high, at::kFloat);
  const auto join_all = [&]<class Master>(Master) {
    const auto* params = static_cast<const bfloat16*>(high.const_data_ptr());
    const auto* remainders = static_cast<const typename Master::Remainder*>(low.const_data_ptr());
    float* to = masters.mutable_data_ptr<float>();
    for (int64_t i = 0; i < high.numel(); ++i) to[i] = join<Master>(params[i], remainders[i]);
  };
  if (low.scalar_type() == at::kShort)
    join_all(Master32());
  else
    join_all(Master24());
  return masters.to(param.device());
}

}  // namespace fused_optim
