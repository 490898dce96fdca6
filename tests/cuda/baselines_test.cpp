// The kernels of the original benchmark: what the tests that hold every kernel cannot know of them. Act-order, shapes
// that the originals refuse, row counts where they change their ways, outputs that lie side by side, replays.
#include "core/float_convert.h"
#include "cuda/gpu.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

namespace nibble {
namespace {

constexpr std::uint16_t kPoison = 0xffff;  // a NaN

const LinearKernel& kernel(const std::string& name) {
  test::gpu();  // the kernels come with the back end
  return kernel_named(name, DeviceKind::cuda);
}

// A random site of f16 activations.
struct F16Site {
  explicit F16Site(const RandomSiteOptions& options) : random(with_f16(options)), site(random.site()) {}
  static RandomSiteOptions with_f16(RandomSiteOptions options) {
    options.compute = DType::f16;
    options.x_dtype = DType::f16;
    options.y_dtype = DType::f16;
    return options;
  }
  Fit fit(const std::string& name) const { return kernel(name).fit(site, test::gpu().device().info(), 200); }

  RandomSite random;
  LinearSite site;
};

RandomSiteOptions options(std::int64_t inputs, std::vector<std::int64_t> outputs, GptqFormat format,
                          std::uint64_t seed = 1) {
  return {.in_features = inputs, .out_features = std::move(outputs), .gptq = format, .seed = seed};
}

// Where x and y lie: elements between the ends of rows and the beginnings of the next, and before the first.
struct Place {
  std::int64_t x_gap = 0;
  std::int64_t y_gap = 0;
  std::int64_t y_first = 0;
};

// Packs a site by a kernel and multiplies; outputs of all parts lie in one matrix, side by side.
class Product {
 public:
  Product(const std::string& name, const F16Site& site, std::int64_t rows, Place place = {})
      : kernel_(kernel(name)),
        site_(site),
        rows_(rows),
        place_(place),
        stream_(test::gpu().device().make_stream()),
        packed_(kernel_.pack(site.site, site.random.tensors(), test::gpu().device(), *stream_)) {
    EXPECT_EQ(packed_->bytes(), kernel_.packed_bytes(site.site));
    x_stride_ = site.site.in_features() + place.x_gap;
    y_stride_ = site.site.out_features() + place.y_gap;
    Random random(7);
    x_.assign(static_cast<std::size_t>(rows * x_stride_), kPoison);
    for (std::int64_t m = 0; m < rows; ++m) {
      for (std::int64_t k = 0; k < site.site.in_features(); ++k) x_at(m, k) = float_to_half(random.normal());
      // One input far from the others, as models have them; the products of 4 codes must stay below 65504.
      x_at(m, m % site.site.in_features()) = float_to_half(50 * random.normal());
    }
    x_buffer_ = allocate(x_.size() * 2);
    stream_->copy_to_device(x_buffer_->data(), x_.data(), x_.size() * 2);
    y_.resize(static_cast<std::size_t>(place.y_first + rows * y_stride_ + 1));
    y_buffer_ = allocate(y_.size() * 2);
    workspace_ = allocate(kernel_.workspace(site.site, rows));
    stream_->synchronize();
  }

  void run() {
    poison();
    enqueue();
    read();
  }
  // Captured once, replayed `times` times.
  void replay(int times) {
    poison();
    stream_->begin_capture();
    enqueue();
    const std::unique_ptr<Graph> graph = stream_->end_capture();
    for (int i = 0; i < times; ++i) stream_->launch(*graph);
    read();
  }

  // Against sums in double, in the norm of kernels/verify.h; every output of the compared rows.
  void check() {
    const std::int64_t inputs = site_.site.in_features();
    const std::int64_t row_step = std::max<std::int64_t>(1, (rows_ - 1) / 5);
    // The bounds of kernels that sum in f16 are for thousands of inputs; none here has more than 1000.
    const double bound = std::min(kernel_.traits().error_f16, 1e-2);
    std::int64_t column = 0;
    for (std::size_t part = 0; part < site_.site.parts.size(); ++part) {
      const std::int64_t outputs = site_.site.parts[part].out_features;
      const std::vector<float> bias = bias_of(site_.random.tensors()[part]);
      std::vector<float> w(static_cast<std::size_t>(inputs));
      const std::int64_t output_step = std::max<std::int64_t>(1, outputs / 300);
      for (std::int64_t n = 0; n < outputs; n += output_step) {
        site_.random.tensors()[part].gptq->dequantize_row(n, w.data());
        for (std::int64_t m = rows_ - 1; m >= 0; m -= row_step) {
          double sum = bias.empty() ? 0 : static_cast<double>(bias[static_cast<std::size_t>(n)]);
          double xx = 0;
          double ww = 0;
          double terms = 0;
          for (std::int64_t k = 0; k < inputs; ++k) {
            const auto x = static_cast<double>(half_to_float(x_at(m, k)));
            const auto v = static_cast<double>(w[static_cast<std::size_t>(k)]);
            sum += x * v;
            xx += x * x;
            ww += v * v;
            terms += x * v * x * v;
          }
          const auto got = static_cast<double>(half_to_float(y_at(m, column + n)));
          const double scale =
              std::sqrt(xx * ww / static_cast<double>(inputs)) + std::sqrt(terms) + std::abs(sum) / 100;
          ASSERT_TRUE(std::isfinite(got)) << kernel_.name() << ", row " << m << ", part " << part << ", output " << n;
          // The output itself is rounded to f16, which a large bias makes the largest error.
          const double error = std::max(0.0, std::abs(got - sum) - std::abs(sum) * 0x1p-11) / scale;
          ASSERT_TRUE(error <= bound) << kernel_.name() << ", row " << m << " of " << rows_ << ", part " << part
                                      << ", output " << n << ": " << got << " instead of " << sum << ", error " << error
                                      << " of " << bound;
        }
      }
      column += outputs;
    }
    for (std::int64_t i = 0; i < place_.y_first; ++i) ASSERT_EQ(y_[static_cast<std::size_t>(i)], kPoison) << i;
    for (std::int64_t m = 0; m < rows_; ++m) {
      for (std::int64_t n = site_.site.out_features(); n < y_stride_; ++n)
        ASSERT_EQ(y_at(m, n), kPoison) << "it writes behind row " << m;
    }
  }

 private:
  static std::unique_ptr<Buffer> allocate(std::size_t bytes) { return test::gpu().device().allocate(bytes, "a test"); }
  std::uint16_t& x_at(std::int64_t m, std::int64_t k) { return x_[static_cast<std::size_t>(m * x_stride_ + k)]; }
  std::uint16_t& y_at(std::int64_t m, std::int64_t n) {
    return y_[static_cast<std::size_t>(place_.y_first + m * y_stride_ + n)];
  }

  void poison() {
    std::fill(y_.begin(), y_.end(), kPoison);
    stream_->copy_to_device(y_buffer_->data(), y_.data(), y_.size() * 2);
    const std::vector<std::uint8_t> scratch(workspace_->size(), 0xff);
    stream_->copy_to_device(workspace_->data(), scratch.data(), scratch.size());
    stream_->synchronize();
  }
  void read() {
    stream_->copy_to_host(y_.data(), y_buffer_->data(), y_.size() * 2);
    stream_->synchronize();
  }
  void enqueue() {
    std::vector<MatrixRef> y;
    auto* begin = reinterpret_cast<std::uint16_t*>(y_buffer_->data()) + place_.y_first;
    for (const LinearDesc& part : site_.site.parts) {
      y.push_back({begin, DType::f16, rows_, part.out_features, y_stride_});
      begin += part.out_features;
    }
    LinearArgs args;
    args.rows = rows_;
    args.x = {x_buffer_->data(), DType::f16, rows_, site_.site.in_features(), x_stride_};
    args.y = y;
    args.workspace = workspace_->data();
    kernel_.enqueue(*packed_, args, *stream_);
  }

  const LinearKernel& kernel_;
  const F16Site& site_;
  std::int64_t rows_;
  Place place_;
  std::int64_t x_stride_ = 0;
  std::int64_t y_stride_ = 0;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<PackedLinear> packed_;
  std::vector<std::uint16_t> x_;
  std::vector<std::uint16_t> y_;
  std::unique_ptr<Buffer> x_buffer_;
  std::unique_ptr<Buffer> y_buffer_;
  std::unique_ptr<Buffer> workspace_;
};

void check(const std::string& name, const RandomSiteOptions& options, std::initializer_list<std::int64_t> row_counts,
           Place place = {}) {
  const F16Site site(options);
  const Fit fit = site.fit(name);
  ASSERT_TRUE(fit.ok) << fit.reason;
  EXPECT_FALSE(fit.fuses_prologue || fit.fuses_epilogue);
  for (const std::int64_t rows : row_counts) {
    SCOPED_TRACE(fmt::format("{}, K {}, N {}, {} bits, groups of {}{}, {} rows", name, options.in_features,
                             options.out_features.front(), options.gptq->bits, options.gptq->group_size,
                             options.gptq->act_order ? ", act-order" : "", rows));
    Product product(name, site, rows, place);
    product.run();
    product.check();
    if (testing::Test::HasFatalFailure()) return;
  }
}

const std::vector<std::string> kNames = {"exllama", "exllamav2", "cuda-old", "cuda"};

TEST(CudaBaselines, FourBits) {
  NIBBLE_NEEDS_GPU();
  std::uint64_t seed = 1;
  for (const std::string& name : kNames) {
    for (const std::int64_t group : {-1, 32, 64, 128}) {
      for (const bool symmetric : {false, true}) {
        // Blocks of 256 and of 64, and for cuda-old and cuda none; whole and part blocks of exllama's.
        for (const auto& [inputs, outputs] :
             std::vector<std::pair<std::int64_t, std::int64_t>>{{512, 512}, {640, 320}, {384, 96}}) {
          check(name, options(inputs, {outputs}, {4, group, false, symmetric}, seed++), {1, 3, 12});
        }
      }
    }
  }
}

TEST(CudaBaselines, OtherWidths) {
  NIBBLE_NEEDS_GPU();
  for (const std::string name : {"cuda-old", "cuda"}) {
    for (const int bits : {2, 3, 8}) {
      for (const bool symmetric : {false, true}) {
        check(name, options(512, {256}, {bits, 128, false, symmetric}), {1, 5, 130});
        check(name, options(320, {64}, {bits, 32, false, symmetric}), {1, 9, 130});
        check(name, options(96, {96}, {bits, -1, false, symmetric}), {1, 4});
      }
    }
  }
}

TEST(CudaBaselines, ActOrder) {
  NIBBLE_NEEDS_GPU();
  std::uint64_t seed = 50;
  for (const std::string name : {"exllama", "exllamav2", "cuda"}) {
    for (const std::int64_t group : {32, 128}) {
      check(name, options(512, {256, 128}, {4, group, true, false}, seed++), {1, 2, 7, 8, 17, 51, 128});
    }
  }
  for (const int bits : {2, 3, 8}) check("cuda", options(256, {256}, {bits, 64, true, false}), {1, 3, 128});
  // The last group is short, which only `cuda` takes.
  check("cuda", options(320, {64}, {4, 128, true, false}), {1, 6, 129});
  check("cuda", options(320, {64}, {4, 128, false, false}), {1, 6, 129});
}

// Around the rows where they begin to dequantise all weights, and of whole and part batches.
TEST(CudaBaselines, RowCounts) {
  NIBBLE_NEEDS_GPU();
  RandomSiteOptions with_bias = options(512, {256}, {4, 128, false, false});
  with_bias.bias = true;
  check("exllama", with_bias, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  check("exllamav2", with_bias, {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 49, 50, 51});
  check("cuda-old", with_bias, {1, 2, 127, 128});
  check("cuda", with_bias, {1, 2, 7, 8, 9, 127, 128});
}

// exllama's blocks have 384 rows where 4096 or 5120 outputs are, and 128 where 17920 are; groups cross them.
TEST(CudaBaselines, ExllamaBlocks) {
  NIBBLE_NEEDS_GPU();
  check("exllama", options(864, {4096}, {4, 32, false, false}), {1, 2});
  check("exllama", options(800, {5120}, {4, 400, false, false}), {1});
  check("exllama", options(320, {17920}, {4, 64, true, false}), {1});
  check("exllama", options(960, {40}, {4, 24, false, false}), {1, 3, 9});
}

// q, k and v side by side in rows that begin on odd halves: pairs of halves are not aligned there.
TEST(CudaBaselines, PartsSideBySide) {
  NIBBLE_NEEDS_GPU();
  for (const std::string& name : kNames) {
    for (const Place place : {Place{3, 5, 1}, Place{1, 0, 2}, Place{0, 1, 0}}) {
      RandomSiteOptions qkv = options(256, {256, 64, 64}, {4, 64, false, false});
      qkv.bias = place.x_gap == 1;
      check(name, qkv, {1, 4, 7}, place);
    }
    // As the engine lays them: in multiples of 16 bytes.
    check(name, options(256, {256, 64, 64}, {4, 64, false, false}), {1, 16, 60, 130}, {8, 8, 8});
  }
}

TEST(CudaBaselines, ReplaysBeginAnew) {
  NIBBLE_NEEDS_GPU();
  for (const std::string& name : kNames) {
    const F16Site site(options(256, {256, 128}, {4, 64, name == "exllama" || name == "cuda", false}));
    for (const std::int64_t rows : {1, 9, 60, 130}) {
      Product product(name, site, rows);
      product.replay(3);
      product.check();
    }
  }
}

TEST(CudaBaselines, SayWhyTheyRefuse) {
  NIBBLE_NEEDS_GPU();
  const auto refuses = [](const std::string& name, const RandomSiteOptions& options, const std::string& sentence) {
    const Fit fit = F16Site(options).fit(name);
    EXPECT_FALSE(fit.ok) << name;
    EXPECT_NE(fit.reason.find(sentence), std::string::npos) << name << ": " << fit.reason;
  };
  for (const std::string& name : kNames) {
    refuses(name, {.in_features = 64, .out_features = {64}}, "is not quantised: use dense");
    refuses(name, options(80, {64}, {4, 16, false, false}), "is 80 x 64, and " + name + " takes inputs");
    F16Site bf16(options(64, {64}, {4, 32, false, false}));
    bf16.site.compute = DType::bf16;
    EXPECT_NE(bf16.fit(name).reason.find("computes in f16 only, not bf16: use --dtype f16"), std::string::npos);
    F16Site logits(options(64, {64}, {4, 32, false, false}));
    logits.site.y_dtype = DType::f32;
    EXPECT_NE(logits.fit(name).reason.find("writes outputs of f16 only"), std::string::npos);
    // Behind a norm, and before an addition, stand other buffers.
    logits.site.epilogue.kind = EpilogueKind::residual;
    logits.site.prologue.kind = PrologueKind::rms_norm;
    logits.site.x_dtype = DType::f32;
    EXPECT_TRUE(logits.fit(name).ok) << logits.fit(name).reason;
  }
  for (const std::string name : {"exllama", "exllamav2"}) {
    refuses(name, options(64, {64}, {3, 32, false, false}), "has 3 bits, and " + name + " takes 4 only: use cuda-old");
    refuses(name, options(64, {64}, {8, 32, true, false}), "takes 4 only: use cuda");
    refuses(name, options(320, {64}, {4, 128, false, false}), "has groups of 128 of its 320 inputs");
  }
  refuses("exllamav2", options(96, {64}, {4, 48, false, false}), "32 or another power of two above it: use cuda");
  refuses("exllama", options(320, {64}, {4, 20, false, false}), "in multiples of 8: use cuda");
  refuses("cuda-old", options(64, {64}, {4, 32, true, false}), "act-order, which cuda-old cannot follow: use cuda");
  refuses("cuda-old", options(320, {64}, {4, 128, false, false}), "has groups of 128 of its 320 inputs");
  refuses("cuda", options(64, {72}, {4, 32, false, false}), "is 64 x 72, and cuda takes inputs and outputs");
}

// Groups of other sizes than the rows sorted by them would fill.
TEST(CudaBaselines, UnevenGroupsAreAnError) {
  NIBBLE_NEEDS_GPU();
  const F16Site site(options(64, {64}, {4, 32, true, false}));
  GptqTensors uneven = *site.random.tensors().front().gptq;
  std::fill(uneven.g_idx.begin() + 1, uneven.g_idx.end(), 1);
  uneven.g_idx[0] = 0;
  LinearTensors tensors;
  tensors.gptq = &uneven;
  const std::unique_ptr<Stream> stream = test::gpu().device().make_stream();
  for (const std::string name : {"exllama", "exllamav2"}) {
    try {
      kernel(name).pack(site.site, {&tensors, 1}, test::gpu().device(), *stream);
      ADD_FAILURE() << name << " takes groups of 1 and 63 inputs";
    } catch (const std::exception& error) {
      EXPECT_NE(std::string(error.what()).find("gives group 0 1 inputs instead of the 32"), std::string::npos)
          << error.what();
    }
  }
}

}  // namespace
}  // namespace nibble
