// The kernel `wgmma` on rows that it takes by itself (kernels_test's have gaps that only cuBLASLt takes), against
// float64: types, odd numbers of rows, activations, parts side by side, sizes at which each plan is the one chosen.
#include "cuda/typed_matrix.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"

#include <algorithm>
#include <array>

namespace nibble::test {
namespace {

double reference_of(ActivationKind kind, double x) {
  switch (kind) {
    case ActivationKind::silu:
      return x / (1 + std::exp(-x));
    case ActivationKind::gelu:
      return 0.5 * x * std::erfc(-x / std::sqrt(2.0));
    case ActivationKind::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
    case ActivationKind::relu:
      return std::max(x, 0.0);
    case ActivationKind::quick_gelu:
      return x / (1 + std::exp(-1.702 * x));
    case ActivationKind::tanh:
      return std::tanh(x);
  }
  return x;
}

struct Case {
  std::int64_t rows = 1, inputs = 64;
  std::vector<std::int64_t> outputs = {64};
  DType type = DType::f16;
  std::optional<ActivationKind> activation = {};
  bool bias = true;
};

void check(const Case& c, unsigned seed) {
  SCOPED_TRACE(std::to_string(c.rows) + " x " + std::to_string(c.inputs) + " x " + std::to_string(c.outputs.front()) +
               " " + std::string(name_of(c.type)));
  const LinearKernel& kernel = kernel_named("wgmma", DeviceKind::cuda);
  Device& device = gpu().device();
  RandomSiteOptions options;
  options.in_features = c.inputs;
  options.out_features = c.outputs;
  options.bias = c.bias;
  options.weights = options.compute = options.x_dtype = options.y_dtype = c.type;
  if (c.activation) options.epilogue = {EpilogueKind::activation, *c.activation};
  options.seed = seed;
  const RandomSite random(options);
  const Fit fit = kernel.fit(random.site(), device.info(), c.rows);
  if (device.info().isa != "sm_90") GTEST_SKIP() << fit.reason;
  ASSERT_TRUE(fit.ok) << fit.reason;
  ASSERT_EQ(fit.fuses_epilogue, c.activation.has_value());
  const std::unique_ptr<Stream> stream = device.make_stream();
  const std::unique_ptr<PackedLinear> packed = kernel.pack(random.site(), random.tensors(), device, *stream);
  std::mt19937 numbers(seed);
  TypedMatrix x(*stream, c.type, c.rows, c.inputs, 8);
  x.fill(numbers);
  std::int64_t columns = 0;
  for (const std::int64_t n : c.outputs) columns += n;
  const auto workspace = device.allocate(kernel.workspace(random.site(), c.rows), "workspace");
  const auto run = [&] {
    TypedMatrix y(*stream, c.type, c.rows, columns, 16, 8);
    std::vector<MatrixRef> parts;
    std::int64_t first = 0;
    for (const std::int64_t n : c.outputs) {
      MatrixRef part = y.ref();
      part.data = static_cast<std::byte*>(part.data) + static_cast<std::size_t>(first) * bytes_of(c.type);
      part.columns = n;
      parts.push_back(part);
      first += n;
    }
    LinearArgs args;
    args.rows = c.rows;
    args.x = x.ref();
    args.y = parts;
    args.workspace = workspace->data();
    kernel.enqueue(*packed, args, *stream);
    y.download();
    return y;
  };
  const TypedMatrix y = run();
  y.expect_surroundings_untouched();
  EXPECT_EQ(run().values(), y.values());
  std::vector<double> want(static_cast<std::size_t>(c.rows * columns));
  // The last rows and columns, and some between.
  const std::int64_t row_step = std::max<std::int64_t>(1, c.rows / 40);
  const std::int64_t column_step = std::max<std::int64_t>(1, columns / 150);
  std::int64_t first = 0;
  for (std::size_t part = 0; part < c.outputs.size(); ++part) {
    const std::vector<float> bias = bias_of(random.tensors()[part]);
    const std::span<const float> w = random.weights(part);
    for (std::int64_t row = (c.rows - 1) % row_step; row < c.rows; row += row_step) {
      for (std::int64_t n = (c.outputs[part] - 1) % column_step; n < c.outputs[part]; n += column_step) {
        double sum = 0;
        double size = 0;
        for (std::int64_t k = 0; k < c.inputs; ++k) {
          const double term = static_cast<double>(x.at(row, k)) * static_cast<double>(w[n * c.inputs + k]);
          sum += term;
          size += term * term;
        }
        if (!bias.empty()) sum += static_cast<double>(rounded(c.type, bias[static_cast<std::size_t>(n)]));
        const double expected = c.activation ? reference_of(*c.activation, sum) : sum;
        const double got = y.at(row, first + n);
        // Products of many rows round sums before the activation, too; none is steeper than 1.14.
        const double before = c.activation ? 1.14 * rounding_of(c.type) * std::abs(sum) : 0;
        ASSERT_LE(std::abs(got - expected),
                  1e-5 * std::sqrt(size) + 1e-6 + before + 1.05 * rounding_of(c.type) * std::abs(expected))
            << "[" << row << ", " << first + n << "]: " << got << ", expected " << expected;
      }
    }
    first += c.outputs[part];
  }
}

TEST(CudaWgmma, SizesOfEveryPlan) {
  NIBBLE_NEEDS_GPU();
  unsigned seed = 1;
  for (const std::int64_t rows : {1, 64, 127, 128, 129, 300, 1111, 5000}) {
    for (const auto& [inputs, outputs] :
         {std::pair<std::int64_t, std::int64_t>{8, 8}, {72, 200}, {768, 768}, {3072, 768}, {768, 2304}, {104, 3080}}) {
      if (rows * inputs * outputs > std::int64_t{1} << 33) continue;
      // With an activation: other products are left to the library.
      check({.rows = rows,
             .inputs = inputs,
             .outputs = {outputs},
             .type = seed % 2 == 0 ? DType::f16 : DType::bf16,
             .activation = seed % 3 == 0 ? ActivationKind::relu : ActivationKind::gelu},
            seed);
      if (testing::Test::HasFailure()) return;
      ++seed;
    }
  }
}

TEST(CudaWgmma, Activations) {
  NIBBLE_NEEDS_GPU();
  for (const ActivationKind kind : {ActivationKind::silu, ActivationKind::gelu, ActivationKind::gelu_tanh,
                                    ActivationKind::relu, ActivationKind::quick_gelu, ActivationKind::tanh}) {
    for (const DType type : {DType::f16, DType::bf16}) {
      for (const std::int64_t rows : {3, 200, 2000})
        check({.rows = rows, .inputs = 320, .outputs = {520}, .type = type, .activation = kind}, 7);
    }
  }
}

// gelu of every finite number of a type, by a product with the identity in wide tiles, which compute it in pairs.
TEST(CudaWgmma, GeluOfEveryNumber) {
  NIBBLE_NEEDS_GPU();
  constexpr std::int64_t kRows = 8192;
  constexpr std::int64_t kWidth = 512;
  const LinearKernel& kernel = kernel_named("wgmma", DeviceKind::cuda);
  Device& device = gpu().device();
  const std::unique_ptr<Stream> stream = device.make_stream();
  for (const DType type : {DType::f16, DType::bf16}) {
    SCOPED_TRACE(name_of(type));
    LinearSite site;
    site.parts = {{"identity", kWidth, kWidth, false, std::nullopt}};
    site.compute = site.x_dtype = site.y_dtype = type;
    site.epilogue = {EpilogueKind::activation, ActivationKind::gelu};
    if (device.info().isa != "sm_90") GTEST_SKIP() << kernel.fit(site, device.info(), kRows).reason;
    Tensor identity(type, {kWidth, kWidth});
    std::ranges::fill(identity.bytes(), std::byte{0});
    const std::uint16_t one = type == DType::f16 ? float_to_half(1) : float_to_bf16(1);
    for (std::int64_t i = 0; i < kWidth; ++i) identity.as<std::uint16_t>()[i * kWidth + i] = one;
    LinearTensors tensors;
    tensors.weight = identity.view();
    const std::unique_ptr<PackedLinear> packed = kernel.pack(site, {&tensors, 1}, device, *stream);
    TypedMatrix x(*stream, type, kRows, kWidth);
    TypedMatrix y(*stream, type, kRows, kWidth);
    // Zero times anything must stay zero in the other columns: numbers that are finite, 65536 patterns over and over.
    for (std::int64_t i = 0; i < kRows * kWidth; ++i) {
      const auto bits = static_cast<std::uint16_t>(i);
      const float value = type == DType::f16 ? half_to_float(bits) : bf16_to_float(bits);
      x.set(i / kWidth, i % kWidth, std::isfinite(value) ? value : 0.0f);
    }
    x.upload();
    const auto workspace = device.allocate(std::max<std::size_t>(1, kernel.workspace(site, kRows)), "workspace");
    const MatrixRef out = y.ref();
    LinearArgs args;
    args.rows = kRows;
    args.x = x.ref();
    args.y = {&out, 1};
    args.workspace = workspace->data();
    kernel.enqueue(*packed, args, *stream);
    y.download();
    const double ulp = 2 * rounding_of(type);  // of numbers from 1 on
    for (std::int64_t i = 0; i < kRows * kWidth; ++i) {
      const double value = static_cast<double>(x.at(i / kWidth, i % kWidth));
      const double want = reference_of(ActivationKind::gelu, value);
      const double got = static_cast<double>(y.at(i / kWidth, i % kWidth));
      const double bound = std::max(2 * std::ldexp(ulp, std::ilogb(want)), 2e-6);
      ASSERT_LE(std::abs(got - want), bound) << "gelu(" << value << ") = " << got << ", expected " << want;
    }
  }
}

// Without an activation: few rows run on the kernel's own tiles, more on the library's, long sums on one of another
// choice.
TEST(CudaWgmma, SizesWithoutActivation) {
  NIBBLE_NEEDS_GPU();
  unsigned seed = 60;
  for (const std::int64_t rows : {1, 64, 84, 129, 450, 600, 1500}) {
    for (const auto& [inputs, outputs] :
         {std::pair<std::int64_t, std::int64_t>{72, 200}, {768, 768}, {3072, 768}, {768, 2304}}) {
      check({.rows = rows,
             .inputs = inputs,
             .outputs = {outputs},
             .type = seed % 2 == 0 ? DType::f16 : DType::bf16,
             .bias = seed % 3 != 0},
            seed);
      if (testing::Test::HasFailure()) return;
      ++seed;
    }
  }
}

// Wide tiles of 192 and of 256 columns, with and without an activation: sums of nine steps and a rest, columns that end
// within a tile and within what is stored at a time.
TEST(CudaWgmma, WideTiles) {
  NIBBLE_NEEDS_GPU();
  unsigned seed = 90;
  for (const auto& [rows, inputs, outputs] :
       {std::array<std::int64_t, 3>{2600, 520, 2056}, {3000, 768, 1544}, {5000, 520, 2304}}) {
    for (const DType type : {DType::f16, DType::bf16}) {
      for (const std::optional<ActivationKind> activation :
           {std::optional<ActivationKind>(), {ActivationKind::gelu}, {ActivationKind::silu}}) {
        check({.rows = rows,
               .inputs = inputs,
               .outputs = {outputs},
               .type = type,
               .activation = activation,
               .bias = seed % 4 != 0},
              seed);
        if (testing::Test::HasFailure()) return;
        ++seed;
      }
    }
  }
}

TEST(CudaWgmma, ProductsOfTheLibrary) {
  NIBBLE_NEEDS_GPU();
  check({.rows = 77, .inputs = 96, .outputs = {96, 96, 96}}, 8);
  check({.rows = 500, .inputs = 320, .outputs = {328}}, 10);
  check({.rows = 77, .inputs = 96, .outputs = {96, 40, 8}, .bias = false}, 9);
}

}  // namespace
}  // namespace nibble::test
