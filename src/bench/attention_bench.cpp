#include "bench/attention_bench.h"

#include "core/checked.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/float_convert.h"
#include "kernels/random_site.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>

namespace nibble {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kLeastRounds = 5;

// f32 sums in another order; bf16 rounds weights and values by up to 2^-9, f16 by 2^-12.
double agreement_bound(DType compute) { return compute == DType::f32 ? 1e-4 : compute == DType::f16 ? 1e-2 : 3e-2; }

float element(const std::byte* from, DType type) {
  if (type == DType::f32) {
    float value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
  std::uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return type == DType::f16 ? half_to_float(bits) : bf16_to_float(bits);
}

// Rows of some sequences on the device, with what a call needs around them.
class Rows {
 public:
  Rows(const AttentionCase& attention, const std::vector<std::int32_t>& lengths, bool padded, bool materialise,
       Backend& backend, Stream& stream)
      : lengths_(lengths),
        padded_(padded),
        columns_(attention.heads * attention.head_dim),
        type_(backend.traits().compute_activations ? attention.compute : DType::f32) {
    std::vector<std::int32_t> begin = {0};
    for (const std::int32_t length : lengths) begin.push_back(begin.back() + rows_of(length, attention.length));
    rows_ = begin.back();
    const auto each = checked_mul(static_cast<std::size_t>(rows_ * columns_), bytes_of(type_), "the rows");
    const SelfAttentionShape shape{
        rows_, attention.batch, attention.length, attention.heads, attention.head_dim, attention.compute, materialise};
    workspace = backend.self_attention_workspace(shape);
    Device& device = backend.device();
    data_ = device.allocate(4 * each, "q, k, v and y");
    maps_ = device.allocate((begin.size() + lengths.size()) * sizeof(std::int32_t), "maps of rows");
    scratch_ = device.allocate(std::max<std::size_t>(workspace, 1), "scratch");
    auto* row_begin = reinterpret_cast<std::int32_t*>(maps_->data());
    stream.copy_to_device(row_begin, begin.data(), begin.size() * sizeof(std::int32_t));
    stream.copy_to_device(row_begin + begin.size(), lengths.data(), lengths.size() * sizeof(std::int32_t));
    fill(attention.length, stream);

    args.map.rows = rows_;
    args.map.sequences = attention.batch;
    args.map.row_begin = row_begin;
    args.q = matrix(0);
    args.k = matrix(1);
    args.v = matrix(2);
    args.y = matrix(3);
    args.heads = attention.heads;
    args.scale = 1 / std::sqrt(static_cast<float>(attention.head_dim));
    args.causal = attention.mask == AttentionMask::causal;
    args.compute = attention.compute;
    args.valid = padded ? row_begin + begin.size() : nullptr;
    args.materialise = materialise;
    if (padded || attention.mask != AttentionMask::padding) args.length = attention.length;
    args.workspace = scratch_->data();
  }

  /// The rows of y that count, one sequence after another.
  std::vector<float> outputs(std::int64_t length, Stream& stream) const {
    std::vector<float> out;
    std::int64_t row = 0;
    for (const std::int32_t count : lengths_) {
      const std::size_t before = out.size();
      const auto values = static_cast<std::size_t>(count * columns_);
      out.resize(before + values);
      std::vector<std::byte> raw(values * bytes_of(type_));
      stream.copy_to_host(raw.data(), row_at(3, row), raw.size());
      stream.synchronize();
      for (std::size_t i = 0; i < values; ++i) out[before + i] = element(raw.data() + i * bytes_of(type_), type_);
      row += rows_of(count, length);
    }
    return out;
  }

  SelfAttentionArgs args;
  std::size_t workspace = 0;

 private:
  std::int32_t rows_of(std::int32_t length, std::int64_t padded) const {
    return padded_ ? static_cast<std::int32_t>(padded) : length;
  }
  std::byte* row_at(int index, std::int64_t row) const {
    return data_->data() + static_cast<std::size_t>((index * rows_ + row) * columns_) * bytes_of(type_);
  }
  MatrixRef matrix(int index) const { return {row_at(index, 0), type_, rows_, columns_, columns_}; }
  // The same values for a token of a sequence, whether there is padding behind it or not.
  void fill(std::int64_t length, Stream& stream) {
    std::vector<std::byte> values(static_cast<std::size_t>(length * columns_) * bytes_of(type_));
    for (int which = 0; which < 3; ++which) {
      std::int64_t row = 0;
      for (std::size_t s = 0; s < lengths_.size(); ++s) {
        Random random(1 + s * 3 + static_cast<std::size_t>(which));
        for (std::size_t at = 0; at < values.size(); at += bytes_of(type_)) {
          const float value = random.normal();
          const std::uint16_t half = type_ == DType::f16 ? float_to_half(value) : float_to_bf16(value);
          std::memcpy(values.data() + at, type_ == DType::f32 ? static_cast<const void*>(&value) : &half,
                      bytes_of(type_));
        }
        const std::int32_t rows = rows_of(lengths_[s], length);
        stream.copy_to_device(row_at(which, row), values.data(),
                              static_cast<std::size_t>(rows * columns_) * bytes_of(type_));
        stream.synchronize();
        row += rows;
      }
    }
    stream.synchronize();
  }

  std::vector<std::int32_t> lengths_;
  bool padded_;
  std::int64_t columns_;
  DType type_;  // of q, k, v and y
  std::int64_t rows_ = 0;
  std::unique_ptr<Buffer> data_, maps_, scratch_;
};

std::vector<std::int32_t> lengths_of(const AttentionCase& attention) {
  std::vector<std::int32_t> out(static_cast<std::size_t>(attention.batch), static_cast<std::int32_t>(attention.length));
  if (attention.mask != AttentionMask::padding) return out;
  for (std::int64_t s = 0; s < attention.batch; ++s) {
    const std::int64_t length = attention.length * (s + 1) / attention.batch;
    out[static_cast<std::size_t>(s)] = static_cast<std::int32_t>(std::max<std::int64_t>(1, length));
  }
  return out;
}

double difference_of(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = 0;
  double largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double difference = std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
    if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
    worst = std::max(worst, difference);
    largest = std::max(largest, std::abs(static_cast<double>(b[i])));
  }
  return worst / largest;
}

}  // namespace

std::string_view name_of(AttentionMask mask) {
  static constexpr std::array<std::string_view, 3> kNames = {"none", "causal", "padding"};
  return kNames[static_cast<std::size_t>(mask)];
}

AttentionMask attention_mask_named(std::string_view name) {
  for (const AttentionMask mask : {AttentionMask::none, AttentionMask::causal, AttentionMask::padding}) {
    if (name == name_of(mask)) return mask;
  }
  fail_usage("there is no mask \"{}\": expected none, causal or padding", name);
}

AttentionResult time_attention(const AttentionCase& attention, Backend& backend, double seconds) {
  AttentionResult out;
  try {
    const std::unique_ptr<Stream> stream = backend.device().make_stream();
    const std::vector<std::int32_t> lengths = lengths_of(attention);
    const bool padding = attention.mask == AttentionMask::padding;
    const Rows math(attention, lengths, padding, true, backend, *stream);
    const Rows fused(attention, lengths, false, false, backend, *stream);
    out.math.workspace = math.workspace;
    out.fused.workspace = fused.workspace;
    for (const std::int32_t length : lengths) {
      const double n = length;
      // Two products, a multiply and an add for each element of a head.
      const double pairs = attention.mask == AttentionMask::causal ? n * (n + 1) / 2 : n * n;
      out.flops += 4 * pairs * static_cast<double>(attention.heads * attention.head_dim);
    }
    backend.self_attention(math.args, *stream);
    backend.self_attention(fused.args, *stream);
    out.difference = difference_of(fused.outputs(attention.length, *stream), math.outputs(attention.length, *stream));
    // Written so that a NaN fails.
    if (!(out.difference <= agreement_bound(attention.compute))) {
      fail("both ways' outputs differ by {:.3g} of the largest; {} lets {} pass", out.difference,
           name_of(attention.compute), agreement_bound(attention.compute));
    }
    const Clock::time_point start = Clock::now();
    while (out.fused.seconds.size() < kLeastRounds || seconds_since(start) < seconds) {
      const auto time = [&](const Rows& rows, AttentionWay& to) {
        const Clock::time_point begin = Clock::now();
        backend.self_attention(rows.args, *stream);
        stream->synchronize();
        to.seconds.push_back(seconds_since(begin));
      };
      time(math, out.math);
      time(fused, out.fused);
    }
  } catch (const Error& error) {
    out.error = error.what();
  }
  return out;
}

}  // namespace nibble
