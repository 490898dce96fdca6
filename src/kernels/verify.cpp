#include "kernels/verify.h"

#include "core/error.h"
#include "core/float_convert.h"
#include "kernels/random_site.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <utility>

namespace nibble {
namespace {

constexpr std::uint8_t kPoison = 0xff;  // a NaN in each of f32, f16 and bf16
// Elements between rows, and after the last, that must stay as they are; odd, so that rows are not aligned.
constexpr std::int64_t kGap = 5;
constexpr std::size_t kGuardBytes = 256;
// Keeps the inputs apart from weights that were drawn from the same seed: a row that equals a row of weights gives a
// sum of K squares, which no tolerance for sums of random products is made for.
constexpr std::uint64_t kInputsSeed = 0x9e3779b97f4a7c15u;

// A matrix with gaps between its rows, on the host (as its type, byte for byte) and on the device.
class TestMatrix {
 public:
  TestMatrix(std::int64_t rows, std::int64_t columns, DType dtype, Device& device)
      : rows_(rows),
        columns_(columns),
        stride_(columns + kGap),
        dtype_(dtype),
        width_(bytes_of(dtype)),
        host_(static_cast<std::size_t>(rows * stride_) * width_),
        buffer_(device.allocate(host_.size(), "verification")) {
    poison();
  }

  void assign(const TestMatrix& other) { host_ = other.host_; }
  void poison() { std::fill(host_.begin(), host_.end(), std::byte{kPoison}); }
  void randomize(Random& random) {
    for (std::int64_t m = 0; m < rows_; ++m) {
      for (std::int64_t k = 0; k < columns_; ++k) set(m, k, random.normal());
    }
  }
  void upload(Stream& stream) { stream.copy_to_device(buffer_->data(), host_.data(), host_.size()); }
  void download(Stream& stream) {
    stream.copy_to_host(host_.data(), buffer_->data(), host_.size());
    stream.synchronize();
  }

  void set(std::int64_t row, std::int64_t column, float value) {
    std::byte* to = host_.data() + at(row, column);
    const std::uint16_t half = dtype_ == DType::bf16 ? float_to_bf16(value) : float_to_half(value);
    if (dtype_ == DType::f32) {
      std::memcpy(to, &value, width_);
    } else {
      std::memcpy(to, &half, width_);
    }
  }
  float get(std::int64_t row, std::int64_t column) const {
    const std::byte* from = host_.data() + at(row, column);
    if (dtype_ == DType::f32) {
      float value = 0;
      std::memcpy(&value, from, width_);
      return value;
    }
    std::uint16_t half = 0;
    std::memcpy(&half, from, width_);
    return dtype_ == DType::bf16 ? bf16_to_float(half) : half_to_float(half);
  }
  const std::vector<std::byte>& bytes() const { return host_; }
  std::int64_t columns() const { return columns_; }
  std::int64_t rows() const { return rows_; }
  MatrixRef ref() const { return {buffer_->data(), dtype_, rows_, columns_, stride_}; }

  bool gaps_untouched() const {
    for (std::int64_t m = 0; m < rows_; ++m) {
      const auto gap = host_.begin() + static_cast<std::ptrdiff_t>(at(m, columns_));
      if (std::any_of(gap, gap + static_cast<std::ptrdiff_t>(static_cast<std::size_t>(kGap) * width_),
                      [](std::byte b) { return b != std::byte{kPoison}; })) {
        return false;
      }
    }
    return true;
  }

 private:
  std::size_t at(std::int64_t row, std::int64_t column) const {
    return static_cast<std::size_t>(row * stride_ + column) * width_;
  }

  std::int64_t rows_;
  std::int64_t columns_;
  std::int64_t stride_;
  DType dtype_;
  std::size_t width_;
  std::vector<std::byte> host_;
  std::unique_ptr<Buffer> buffer_;
};

double activated(ActivationKind kind, double v) {
  switch (kind) {
    case ActivationKind::silu:
      return v / (1 + std::exp(-v));
    case ActivationKind::gelu:
      return v * 0.5 * std::erfc(-v * std::sqrt(0.5));
    case ActivationKind::gelu_tanh:
      return 0.5 * v * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v)));
    case ActivationKind::relu:
      return std::max(v, 0.0);
    case ActivationKind::quick_gelu:
      return v / (1 + std::exp(-1.702 * v));
    case ActivationKind::tanh:
      return std::tanh(v);
  }
  return 0;
}

// |act'| is at most this for all activations: that of GELU, of both forms, at sqrt(2).
constexpr double kSteepest = 1.13;

std::vector<std::int64_t> sample(std::int64_t count, std::int64_t wanted, Random& random) {
  std::set<std::int64_t> chosen;
  if (wanted <= 0 || wanted >= count) {
    for (std::int64_t i = 0; i < count; ++i) chosen.insert(i);
  } else {
    chosen = {0, count - 1};
    while (static_cast<std::int64_t>(chosen.size()) < wanted) chosen.insert(random.below(count));
  }
  return {chosen.begin(), chosen.end()};
}

// The inputs after the prologue in double, and their norms, for the compared rows.
struct Inputs {
  std::vector<std::int64_t> rows;
  std::vector<std::vector<double>> x;
  std::vector<double> norm;
};

Inputs normed_inputs(const LinearSite& site, const TestMatrix& x, const std::vector<float>& norm_weight,
                     std::vector<std::int64_t> rows) {
  Inputs in;
  const std::int64_t k = x.columns();
  for (const std::int64_t m : rows) {
    std::vector<double> row;
    row.reserve(static_cast<std::size_t>(k));
    for (std::int64_t i = 0; i < k; ++i) row.push_back(static_cast<double>(x.get(m, i)));
    if (site.prologue.kind == PrologueKind::rms_norm) {
      double squares = 0;
      for (const double v : row) squares += v * v;
      const double factor = 1 / std::sqrt(squares / static_cast<double>(k) + static_cast<double>(site.prologue.eps));
      for (std::size_t i = 0; i < row.size(); ++i) row[i] *= factor * static_cast<double>(norm_weight[i]);
    }
    double squares = 0;
    for (const double v : row) squares += v * v;
    in.norm.push_back(std::sqrt(squares));
    in.x.push_back(std::move(row));
  }
  in.rows = std::move(rows);
  return in;
}

// One sum of products, and the size of its rounding errors.
struct Product {
  double value = 0;
  double scale = 0;
};

// Of every compared row with one output of one part.
std::vector<Product> products(const Inputs& in, const LinearTensors& tensors, const std::vector<float>& bias,
                              std::int64_t n) {
  const std::size_t k = in.x.front().size();
  std::vector<float> w(k);
  if (tensors.gptq != nullptr) {
    tensors.gptq->dequantize_row(n, w.data());
  } else {
    rows_to_float(tensors.weight, n, 1, w);
  }
  double squares = 0;
  for (const float v : w) squares += static_cast<double>(v) * static_cast<double>(v);
  const double unit = std::sqrt(squares / static_cast<double>(k));
  std::vector<Product> out;
  for (std::size_t r = 0; r < in.x.size(); ++r) {
    double sum = 0;
    double terms = 0;
    for (std::size_t i = 0; i < k; ++i) {
      const double term = in.x[r][i] * static_cast<double>(w[i]);
      sum += term;
      terms += term * term;
    }
    if (!bias.empty()) sum += static_cast<double>(bias[static_cast<std::size_t>(n)]);
    out.push_back({sum, in.norm[r] * unit + std::sqrt(terms)});
  }
  return out;
}

struct Comparison {
  double worst = 0;
  std::string where;
  double rounding = 0;  // of a result to its own type: no error of the kernel
  void add(double got, double want, double scale, std::int64_t row, std::size_t part, std::int64_t n) {
    const double error =
        std::max(0.0, std::abs(got - want) - rounding * std::abs(want)) / (scale + std::abs(want) / 100);
    // A NaN compares false with everything: it counts as the worst.
    if (error <= worst && std::isfinite(got)) return;
    worst = std::isfinite(got) && std::isfinite(error) ? error : HUGE_VAL;
    where = fmt::format("row {}, part {}, output {}: {} instead of {}", row, part, n, got, want);
  }
};

class Run {
 public:
  Run(const LinearKernel& kernel, const PackedLinear& packed, const LinearSite& site, const VerifyOptions& options,
      Device& device)
      : kernel_(kernel),
        packed_(packed),
        site_(site),
        stream_(device.make_stream()),
        random_(options.seed ^ kInputsSeed),
        x_(options.rows, site.in_features(), site.x_dtype, device),
        residual_(options.rows, outputs().front(), site.y_dtype, device) {
    for (const std::int64_t n : outputs()) y_.emplace_back(options.rows, n, site.y_dtype, device);
    x_.randomize(random_);
    residual_.randomize(random_);
    // What breaks low-precision activations: one token of a thousand times the size, one feature of a hundred times.
    // Results of f16 end at 65504, and a gated one is a product of two: less there.
    const bool half = site.y_dtype == DType::f16 || site.x_dtype == DType::f16;
    const bool gated = half && site.epilogue.kind == EpilogueKind::gated;
    const float token_factor = gated ? 1 : half ? 10 : 1000;
    const float feature_factor = half ? 10 : 100;
    if (options.rows > 1) {
      for (std::int64_t k = 0; k < x_.columns(); ++k)
        x_.set(options.rows - 1, k, token_factor * x_.get(options.rows - 1, k));
    }
    const std::int64_t outlier = random_.below(x_.columns());
    x_.set(options.rows / 2, outlier, feature_factor * x_.get(options.rows / 2, outlier));
    x_.upload(*stream_);
    residual_.upload(*stream_);
    for (std::int64_t k = 0; k < x_.columns(); ++k) norm_weight_.push_back(1 + 0.25f * random_.normal());
    norm_buffer_ = device.allocate(norm_weight_.size() * 4, "verification");
    stream_->copy_to_device(norm_buffer_->data(), norm_weight_.data(), norm_weight_.size() * 4);
    workspace_bytes_ = kernel.workspace(site, options.rows);
    workspace_ = device.allocate(workspace_bytes_ + kGuardBytes, "verification");
  }

  // The outputs of each part, or of the one output that an epilogue leaves.
  std::vector<std::int64_t> outputs() const {
    if (site_.epilogue.kind == EpilogueKind::gated) return {site_.parts.front().out_features};
    std::vector<std::int64_t> out;
    out.reserve(site_.parts.size());
    for (const LinearDesc& part : site_.parts) out.push_back(part.out_features);
    return out;
  }

  // Empty, or what went wrong. The captured call adds to the residual in place, the eager one beside it.
  std::string run(bool from_graph) {
    const bool residual = site_.epilogue.kind == EpilogueKind::residual;
    std::vector<MatrixRef> refs;
    for (TestMatrix& y : y_) {
      y.poison();
      if (residual && from_graph) y.assign(residual_);
      y.upload(*stream_);
      refs.push_back(y.ref());
    }
    const std::vector<std::uint8_t> poison(workspace_bytes_ + kGuardBytes, kPoison);
    stream_->copy_to_device(workspace_->data(), poison.data(), workspace_bytes_ + kGuardBytes);
    LinearArgs args;
    args.rows = x_.rows();
    args.x = x_.ref();
    if (site_.prologue.kind == PrologueKind::rms_norm)
      args.norm_weight = reinterpret_cast<const float*>(norm_buffer_->data());
    args.y = refs;
    if (residual) args.residual = from_graph ? refs.front() : residual_.ref();
    args.workspace = workspace_->data();
    if (from_graph) {
      stream_->begin_capture();
      kernel_.enqueue(packed_, args, *stream_);
      const std::unique_ptr<Graph> graph = stream_->end_capture();
      stream_->launch(*graph);
      stream_->synchronize();
    } else {
      kernel_.enqueue(packed_, args, *stream_);
      stream_->synchronize();
    }
    return damage();
  }

  Comparison compare(std::span<const LinearTensors> tensors, const VerifyOptions& options) {
    const Inputs in = normed_inputs(site_, x_, norm_weight_, sample(x_.rows(), options.compared_rows, random_));
    const bool gated = site_.epilogue.kind == EpilogueKind::gated;
    Comparison comparison;
    if (site_.y_dtype == DType::f16) comparison.rounding = 0x1p-11;
    if (site_.y_dtype == DType::bf16) comparison.rounding = 0x1p-8;
    for (std::size_t i = 0; i < y_.size(); ++i) {
      const std::vector<float> bias = bias_of(tensors[i]);
      const std::vector<float> up_bias = gated ? bias_of(tensors[1]) : std::vector<float>{};
      for (const std::int64_t n : sample(y_[i].columns(), options.outputs, random_)) {
        const std::vector<Product> first = products(in, tensors[i], bias, n);
        const std::vector<Product> up = gated ? products(in, tensors[1], up_bias, n) : std::vector<Product>{};
        for (std::size_t r = 0; r < in.rows.size(); ++r) {
          const std::int64_t m = in.rows[r];
          Product want = first[r];
          if (gated) {
            const double act = activated(site_.epilogue.activation, want.value);
            want.scale = kSteepest * want.scale * std::abs(up[r].value) + std::abs(act) * up[r].scale +
                         0.01 * want.scale * up[r].scale;
            want.value = act * up[r].value;
          } else if (site_.epilogue.kind == EpilogueKind::activation) {
            want.scale *= kSteepest;
            want.value = activated(site_.epilogue.activation, want.value);
          } else if (site_.epilogue.kind == EpilogueKind::residual) {
            want.value += static_cast<double>(residual_.get(m, n));
          }
          comparison.add(static_cast<double>(y_[i].get(m, n)), want.value, want.scale, m, i, n);
        }
      }
    }
    return comparison;
  }

  std::vector<std::vector<std::byte>> values() const {
    std::vector<std::vector<std::byte>> out;
    out.reserve(y_.size());
    for (const TestMatrix& y : y_) out.push_back(y.bytes());
    return out;
  }

 private:
  std::string damage() {
    for (std::size_t i = 0; i < y_.size(); ++i) {
      y_[i].download(*stream_);
      if (!y_[i].gaps_untouched()) return fmt::format("it writes beside its rows of output {}", i);
      for (std::int64_t m = 0; m < y_[i].rows(); ++m) {
        for (std::int64_t n = 0; n < y_[i].columns(); ++n) {
          if (!std::isfinite(y_[i].get(m, n)))
            return fmt::format("output {} of row {} (part {}) is {}", n, m, i, y_[i].get(m, n));
        }
      }
    }
    std::vector<std::uint8_t> guard(kGuardBytes);
    stream_->copy_to_host(guard.data(), workspace_->data() + workspace_bytes_, kGuardBytes);
    stream_->synchronize();
    if (std::any_of(guard.begin(), guard.end(), [](std::uint8_t b) { return b != kPoison; }))
      return "it writes past its workspace";
    return {};
  }

  const LinearKernel& kernel_;
  const PackedLinear& packed_;
  const LinearSite& site_;
  std::unique_ptr<Stream> stream_;
  Random random_;
  TestMatrix x_;
  TestMatrix residual_;
  std::vector<TestMatrix> y_;
  std::vector<float> norm_weight_;
  std::unique_ptr<Buffer> norm_buffer_;
  std::unique_ptr<Buffer> workspace_;
  std::size_t workspace_bytes_ = 0;
};

}  // namespace

VerifyResult verify(const LinearKernel& kernel, const PackedLinear& packed, const LinearSite& site,
                    std::span<const LinearTensors> tensors, const VerifyOptions& options, Device& device) {
  const KernelTraits traits = kernel.traits();
  VerifyResult result;
  result.bound = traits.error_bound(site.compute);
  result.error = HUGE_VAL;
  const auto wrong = [&](const std::string& what) {
    result.ok = false;
    result.sentence =
        fmt::format("{} is wrong for {} with {} rows: {}", kernel.name(), site.parts.front().name, options.rows, what);
    return result;
  };

  Run run(kernel, packed, site, options, device);
  if (const std::string what = run.run(false); !what.empty()) return wrong(what);
  const std::vector<std::vector<std::byte>> eager = run.values();
  if (const std::string what = run.run(true); !what.empty()) return wrong(what + " (from a captured graph)");
  if (traits.deterministic && eager != run.values())
    return wrong("a second run, from a captured graph, gives other bits");

  const Comparison comparison = run.compare(tensors, options);
  result.error = comparison.worst;
  if (comparison.worst > result.bound) {
    return wrong(
        fmt::format("error {:.2g} where {:.2g} is allowed, at {}", result.error, result.bound, comparison.where));
  }
  result.ok = true;
  result.sentence =
      fmt::format("{} agrees with the reference: error {:.2g} of {:.2g}", kernel.name(), result.error, result.bound);
  return result;
}

VerifyResult verify(const LinearKernel& kernel, const LinearSite& site, std::span<const LinearTensors> tensors,
                    const VerifyOptions& options, Device& device) {
  const Fit fit = kernel.fit(site, device.info(), options.rows);
  if (!fit.ok)
    return {false, HUGE_VAL, 0,
            fmt::format("{} cannot run {}: {}", kernel.name(), site.parts.front().name, fit.reason)};
  const LinearSite packed_site = fused_site(site, fit);
  const std::unique_ptr<Stream> stream = device.make_stream();
  const std::unique_ptr<PackedLinear> packed = kernel.pack(packed_site, tensors, device, *stream);
  stream->synchronize();
  return verify(kernel, *packed, packed_site, tensors, options, device);
}

}  // namespace nibble
