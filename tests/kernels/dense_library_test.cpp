// `dense` with oneDNN's product wherever it can be had, against float64 and against `dense` without it.
#include "kernels/cpu/dense_library.h"
#include "kernels/cpu/dense.h"

#include "core/cpu.h"
#include "core/cpu_device.h"
#include "kernels/random_site.h"
#include "kernels/verify.h"

#include <gtest/gtest.h>

#include <vector>

namespace nibble {
namespace {

std::vector<RandomSiteOptions> sites() {
  std::vector<RandomSiteOptions> all;
  for (const DType compute : {DType::f32, DType::bf16}) {
    // Parts whose last panel is not full, with biases; a norm in front; K that fills no block of bf16 pairs.
    all.push_back({.in_features = 96, .out_features = {64, 40, 33}, .bias = true, .compute = compute, .seed = 1});
    all.push_back({.in_features = 208,
                   .out_features = {48},
                   .compute = compute,
                   .prologue = {PrologueKind::rms_norm, 1e-5f},
                   .seed = 2});
    all.push_back({.in_features = 112,
                   .out_features = {80},
                   .bias = true,
                   .compute = compute,
                   .epilogue = {EpilogueKind::residual, ActivationKind::silu},
                   .seed = 3});
    // What the library does not take: gates, activations, and in f32 K that is no multiple of 16.
    all.push_back({.in_features = 64,
                   .out_features = {48, 48},
                   .compute = compute,
                   .epilogue = {EpilogueKind::gated, ActivationKind::silu},
                   .seed = 4});
    all.push_back({.in_features = 64,
                   .out_features = {48},
                   .compute = compute,
                   .epilogue = {EpilogueKind::activation, ActivationKind::gelu},
                   .seed = 7});
    all.push_back({.in_features = 91, .out_features = {32}, .compute = compute, .seed = 5});
  }
  return all;
}

TEST(DenseLibrary, AgreesWithFloat64) {
  Device& device = cpu_device();
  const std::unique_ptr<Stream> stream = device.make_stream();
  const std::unique_ptr<LinearKernel> kernel = make_dense(LibraryUse::wherever_possible);
  for (const RandomSiteOptions& options : sites()) {
    const RandomSite random(options);
    const Fit fit = kernel->fit(random.site(), device.info(), 1024);
    ASSERT_TRUE(fit.ok) << fit.reason;
    const LinearSite site = fused_site(random.site(), fit);
    const auto packed = kernel->pack(site, random.tensors(), device, *stream);
    // All rows left to the library, some of them, blocks of them, and none.
    for (const std::int64_t rows : {kLibraryRows, kLibraryRows + 13, 2 * kLibraryRows + 1, std::int64_t{20}}) {
      const VerifyResult result =
          verify(*kernel, *packed, site, random.tensors(),
                 {.rows = rows, .outputs = 0, .compared_rows = 0, .seed = options.seed}, device);
      EXPECT_TRUE(result.ok) << "site " << options.seed << ", " << rows << " rows: " << result.sentence;
    }
  }
}

// Two calls' products of one site: `y` apart from the residual, and in its place.
TEST(DenseLibrary, AddsTheResidualAlsoInPlace) {
  Device& device = cpu_device();
  const std::unique_ptr<Stream> stream = device.make_stream();
  const RandomSite random({.in_features = 64,
                           .out_features = {32},
                           .compute = DType::f32,
                           .epilogue = {EpilogueKind::residual, ActivationKind::silu},
                           .seed = 6});
  const std::int64_t rows = kLibraryRows + 3;
  std::vector<float> x(static_cast<std::size_t>(rows * 64));
  std::vector<float> residual(static_cast<std::size_t>(rows * 32));
  Random numbers(7);
  for (float& v : x) v = numbers.normal();
  for (float& v : residual) v = numbers.normal();
  const auto run = [&](LibraryUse use, bool in_place) {
    const std::unique_ptr<LinearKernel> kernel = make_dense(use);
    const auto packed = kernel->pack(random.site(), random.tensors(), device, *stream);
    const auto workspace = device.allocate(kernel->workspace(random.site(), rows), "workspace");
    std::vector<float> from = residual;
    std::vector<float> to(from.size(), -1.0f);
    const MatrixRef added{from.data(), DType::f32, rows, 32, 32};
    const MatrixRef y[] = {in_place ? added : MatrixRef{to.data(), DType::f32, rows, 32, 32}};
    LinearArgs args;
    args.rows = rows;
    args.x = {x.data(), DType::f32, rows, 64, 64};
    args.y = y;
    args.residual = added;
    args.workspace = workspace->data();
    kernel->enqueue(*packed, args, *stream);
    return in_place ? from : to;
  };
  const std::vector<float> want = run(LibraryUse::never, false);
  const std::vector<float> apart = run(LibraryUse::wherever_possible, false);
  EXPECT_EQ(run(LibraryUse::wherever_possible, true), apart);
  for (std::size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(apart[i], want[i], 1e-4f) << "output " << i;
}

// So that the tests above do test it.
TEST(DenseLibrary, TakesPanelsWhereThereIsAvx512) {
  if (!isa_supported(Isa::avx512)) GTEST_SKIP() << "no AVX-512 here";
  const std::vector<float> panels(64 * 32);
  const LibraryProduct::Shape shape{
      .rows = kLibraryRows, .inputs = 64, .outputs = 32, .x_stride = 64, .y_stride = 32, .adds = true};
  EXPECT_NE(LibraryProduct::make(shape, reinterpret_cast<const std::byte*>(panels.data()), nullptr), nullptr);
}

}  // namespace
}  // namespace nibble
