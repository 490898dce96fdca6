// Every registered CUDA kernel against float64, on every kind of site that it takes, in each compute type.
#include "cuda/gpu.h"
#include "cuda/typed_matrix.h"
#include "kernels/output_order.h"
#include "kernels/random_site.h"
#include "kernels/registry.h"
#include "kernels/verify.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <initializer_list>
#include <random>

namespace nibble {
namespace {

constexpr DType kComputeTypes[] = {DType::f16, DType::bf16, DType::f32};

std::string describe(const RandomSiteOptions& o) {
  const std::string gptq = !o.gptq
                               ? "dense"
                               : fmt::format("bits {}, group {}{}{}", o.gptq->bits, o.gptq->group_size,
                                             o.gptq->act_order ? ", act-order" : "", o.gptq->symmetric ? ", sym" : "");
  return fmt::format("K {}, {} parts of N {}, {}, compute {}{}, prologue {}, epilogue {}, seed {}", o.in_features,
                     o.out_features.size(), o.out_features.front(), gptq, name_of(o.compute), o.bias ? ", bias" : "",
                     static_cast<int>(o.prologue.kind), static_cast<int>(o.epilogue.kind), o.seed);
}

/// The site as lowering would hand it to the kernel: what it does not fuse is gone, and the residual stream is f32.
LinearSite lowered(const RandomSite& random, const Fit& fit) {
  LinearSite site = fused_site(random.site(), fit);
  site.x_dtype = site.prologue.kind != PrologueKind::none ? DType::f32 : site.compute;
  site.y_dtype = site.epilogue.kind == EpilogueKind::residual ? DType::f32 : site.compute;
  return site;
}

/// Every output of every kernel that takes the site, against float64; how many kernels did.
int check(const RandomSiteOptions& options, std::initializer_list<std::int64_t> row_counts, bool all = true) {
  const RandomSite random(options);
  Device& device = test::gpu().device();
  const std::unique_ptr<Stream> stream = device.make_stream();
  int takers = 0;
  for (const LinearKernel* kernel : kernels_for(DeviceKind::cuda)) {
    const std::int64_t most = *std::max_element(row_counts.begin(), row_counts.end());
    // Activations as they would be for this kernel, whatever it fuses.
    LinearSite asked = random.site();
    asked.x_dtype = asked.prologue.kind != PrologueKind::none ? DType::f32 : asked.compute;
    asked.y_dtype = asked.compute;
    const Fit fit = kernel->fit(asked, device.info(), most);
    if (!fit.ok) {
      EXPECT_GT(fit.reason.size(), 10u) << kernel->name() << " refuses and should say why";
      continue;
    }
    ++takers;
    const LinearSite site = lowered(random, fit);
    const std::unique_ptr<PackedLinear> packed = kernel->pack(site, random.tensors(), device, *stream);
    stream->synchronize();
    EXPECT_EQ(packed->bytes(), kernel->packed_bytes(site)) << kernel->name() << ": " << describe(options);
    for (const std::int64_t rows : row_counts) {
      VerifyOptions verify_options{.rows = rows, .seed = options.seed};
      if (all) verify_options.outputs = verify_options.compared_rows = 0;
      const VerifyResult result = verify(*kernel, *packed, site, random.tensors(), verify_options, device);
      EXPECT_TRUE(result.ok) << result.sentence << "\n  " << describe(options);
    }
  }
  return takers;
}

TEST(CudaKernels, GptqFormats) {
  NIBBLE_NEEDS_GPU();
  std::uint64_t seed = 1;
  for (const int bits : {2, 3, 4, 8}) {
    for (const std::int64_t group : {-1, 16, 32, 64, 100, 128}) {
      for (const bool act_order : {false, true}) {
        for (const bool symmetric : {false, true}) {
          // 96 and 160 are no multiples of 128; 72 outputs no whole number of strips of 16.
          const std::int64_t inputs = std::array<std::int64_t, 4>{96, 160, 256, 512}[seed % 4];
          const std::int64_t outputs = std::array<std::int64_t, 3>{32, 64, 72}[seed % 3];
          EXPECT_GT(check({.in_features = inputs,
                           .out_features = {outputs},
                           .bias = seed % 2 == 0,
                           .gptq = GptqFormat{bits, group, act_order, symmetric},
                           .compute = kComputeTypes[seed % 3],
                           .seed = seed},
                          {1, 2 + static_cast<std::int64_t>(seed % 14), 17}),
                    0);
          ++seed;
        }
      }
    }
  }
}

TEST(CudaKernels, DenseTypes) {
  NIBBLE_NEEDS_GPU();
  std::uint64_t seed = 100;
  for (const DType weights : {DType::f32, DType::f16, DType::bf16}) {
    for (const DType compute : kComputeTypes) {
      for (const std::int64_t inputs : {1, 37, 64, 576}) {
        EXPECT_GT(check({.in_features = inputs,
                         .out_features = {seed % 2 == 0 ? 48 : 131},
                         .bias = seed % 3 == 0,
                         .weights = weights,
                         .compute = compute,
                         .seed = seed},
                        {1, 3, 33}),
                  0);
        ++seed;
      }
    }
  }
}

// Every number of rows to 17, and those around the limits of tiles and of kernels' ways.
TEST(CudaKernels, RowCounts) {
  NIBBLE_NEEDS_GPU();
  const std::initializer_list<std::int64_t> rows = {1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12,  13,  14,
                                                    15, 16, 17, 31, 32, 33, 49, 50, 51, 64, 65, 127, 128, 129};
  for (const DType compute : kComputeTypes) {
    for (const bool act_order : {false, true}) {
      EXPECT_GT(check({.in_features = 256,
                       .out_features = {320},
                       .bias = true,
                       .gptq = GptqFormat{4, 64, act_order, false},
                       .compute = compute,
                       .seed = 7},
                      rows),
                0);
    }
    EXPECT_GT(check({.in_features = 96, .out_features = {48}, .bias = true, .compute = compute, .seed = 8}, rows), 0);
  }
}

TEST(CudaKernels, FusedSites) {
  NIBBLE_NEEDS_GPU();
  std::uint64_t seed = 200;
  for (const bool gptq : {false, true}) {
    for (const DType compute : kComputeTypes) {
      for (const Prologue prologue : {Prologue{}, Prologue{PrologueKind::rms_norm, 1e-5f}}) {
        const auto with = [&](std::vector<std::int64_t> outputs, Epilogue epilogue) {
          RandomSiteOptions options{.in_features = 256,
                                    .out_features = std::move(outputs),
                                    .bias = seed % 2 == 0,
                                    .compute = compute,
                                    .prologue = prologue,
                                    .epilogue = epilogue,
                                    .seed = seed};
          if (gptq) options.gptq = GptqFormat{4, 64, seed % 3 == 0, seed % 5 < 2};
          EXPECT_GT(check(options, {1, 4, 9, 16, 33}), 0);
          ++seed;
        };
        with({80, 32, 48}, {EpilogueKind::store, ActivationKind::silu});
        with({72}, {EpilogueKind::residual, ActivationKind::silu});
        for (const ActivationKind kind :
             {ActivationKind::silu, ActivationKind::gelu, ActivationKind::gelu_tanh, ActivationKind::relu}) {
          with({84, 84}, {EpilogueKind::gated, kind});
        }
      }
    }
  }
}

// Of the size of real models: inputs in several slices, strips cut between thread blocks.
TEST(CudaKernels, RealShapes) {
  NIBBLE_NEEDS_GPU();
  std::uint64_t seed = 300;
  for (const auto& [inputs, outputs] :
       {std::pair<std::int64_t, std::int64_t>{2048, 2048}, {5632, 2048}, {2048, 5632}}) {
    for (const int bits : {4, 8}) {
      for (const bool act_order : {false, true}) {
        EXPECT_GT(check({.in_features = inputs,
                         .out_features = {outputs},
                         .gptq = GptqFormat{bits, 128, act_order, true},
                         .compute = seed % 2 == 0 ? DType::f16 : DType::bf16,
                         .seed = seed},
                        {1, 2, 5, 8, 16, 70}, false),
                  0);
        ++seed;
      }
    }
    check(
        {.in_features = inputs, .out_features = {outputs}, .weights = DType::f16, .compute = DType::f16, .seed = seed},
        {1, 8, 70}, false);
  }
}

// A gated product that puts its outputs out in the order of the linear behind it: the two together give the same bits
// as before, in few rows and many.
TEST(CudaKernels, PutsOutInTheReadersOrder) {
  NIBBLE_NEEDS_GPU();
  Device& device = test::gpu().device();
  const std::unique_ptr<Stream> stream = device.make_stream();
  const LinearKernel* kernel = &kernel_named("nibble", DeviceKind::cuda);
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool ordered : {true, false}) {
      const DType type = bits % 2 == 0 ? DType::f16 : DType::bf16;
      const RandomSite first({.in_features = 256,
                              .out_features = {384, 384},
                              .bias = bits != 8,
                              .gptq = GptqFormat{bits, 64, true, bits == 3},
                              .compute = type,
                              .epilogue = {EpilogueKind::gated, ActivationKind::silu},
                              .seed = 500});
      const RandomSite second({.in_features = 384,
                               .out_features = {80},
                               .gptq = GptqFormat{bits, 128, ordered, false},
                               .compute = type,
                               .seed = 501});
      const auto lower = [&](const RandomSite& random) {
        LinearSite site = fused_site(random.site(), kernel->fit(random.site(), device.info(), 80));
        site.x_dtype = site.y_dtype = type;
        return site;
      };
      const LinearSite writes = lower(first);
      const LinearSite reads = lower(second);
      const std::unique_ptr<PackedLinear> writer = kernel->pack(writes, first.tensors(), device, *stream);
      const std::unique_ptr<PackedLinear> reader = kernel->pack(reads, second.tensors(), device, *stream);
      const auto run = [&](const LinearSite& site, const PackedLinear& packed, const MatrixRef& x, const MatrixRef& y) {
        const std::unique_ptr<Buffer> workspace = device.allocate(kernel->workspace(site, x.rows), "a test");
        LinearArgs args;
        args.rows = x.rows;
        args.x = x;
        args.y = std::span(&y, 1);
        args.workspace = workspace->data();
        kernel->enqueue(packed, args, *stream);
        stream->synchronize();
      };
      const auto both = [&](std::int64_t rows) {
        test::TypedMatrix x(*stream, type, rows, 256), between(*stream, type, rows, 384), y(*stream, type, rows, 80);
        Random numbers(6);
        for (std::int64_t m = 0; m < rows; ++m) {
          for (std::int64_t k = 0; k < 256; ++k) x.set(m, k, static_cast<float>(numbers.below(2001)) / 1000 - 1);
        }
        x.upload();
        run(writes, *writer, x.ref(), between.ref());
        run(reads, *reader, between.ref(), y.ref());
        y.download();
        std::vector<float> out;
        for (std::int64_t m = 0; m < rows; ++m) {
          for (std::int64_t n = 0; n < 80; ++n) out.push_back(y.at(m, n));
        }
        return out;
      };
      const std::vector<std::int64_t> row_counts = {1, 5, 16, 80};
      std::vector<std::vector<float>> before;
      before.reserve(row_counts.size());
      for (const std::int64_t rows : row_counts) before.push_back(both(rows));
      EXPECT_EQ(dynamic_cast<OutputOrder&>(*writer).put_out_for(*reader, device, *stream), ordered);
      for (std::size_t i = 0; i < row_counts.size(); ++i)
        EXPECT_EQ(both(row_counts[i]), before[i]) << bits << " bits, " << row_counts[i] << " rows";
      EXPECT_FALSE(dynamic_cast<OutputOrder&>(*reader).put_out_for(*writer, device, *stream)) << "not a gated site";
    }
  }
}

// A site with a residual that leaves its results in the order of the linear behind it once more: few rows are taken
// from there, whatever has become of the others, and more rows as before.
TEST(CudaKernels, CopiesOutInTheReadersOrder) {
  NIBBLE_NEEDS_GPU();
  Device& device = test::gpu().device();
  const std::unique_ptr<Stream> stream = device.make_stream();
  const LinearKernel& kernel = kernel_named("nibble", DeviceKind::cuda);
  constexpr std::int64_t kInputs = 256;
  constexpr std::int64_t kBetween = 384;
  constexpr std::int64_t kOutputs = 88;
  Random numbers(7);
  const auto random = [&] { return static_cast<float>(numbers.below(2001)) / 1000 - 1; };
  std::vector<float> norm(kBetween);
  for (float& weight : norm) weight = random();
  const test::OnDevice<float> norm_weight(*stream, norm);
  for (const int bits : {2, 3, 4, 8}) {
    const DType type = bits % 2 == 0 ? DType::f16 : DType::bf16;
    const auto pack = [&](const RandomSite& random_site, DType x, DType y) {
      LinearSite site = fused_site(random_site.site(), kernel.fit(random_site.site(), device.info(), 80));
      site.x_dtype = x;
      site.y_dtype = y;
      return kernel.pack(site, random_site.tensors(), device, *stream);
    };
    const RandomSite first({.in_features = kInputs,
                            .out_features = {kBetween},
                            .bias = bits != 8,
                            .gptq = GptqFormat{bits, 64, bits == 3, true},
                            .compute = type,
                            .epilogue = {EpilogueKind::residual, ActivationKind::silu},
                            .seed = 600});
    const RandomSite second({.in_features = kBetween,
                             .out_features = {kOutputs, kOutputs},
                             .gptq = GptqFormat{bits, 128, true, false},
                             .compute = type,
                             .prologue = {PrologueKind::rms_norm, 1e-5f},
                             .epilogue = {EpilogueKind::gated, ActivationKind::silu},
                             .seed = 601});
    const std::unique_ptr<PackedLinear> writer = pack(first, type, DType::f32);
    const std::unique_ptr<PackedLinear> reader = pack(second, DType::f32, type);
    const std::size_t bytes = static_cast<std::size_t>(kMostCopiedRows * kBetween) * sizeof(float);
    const std::unique_ptr<Buffer> copy = device.allocate(bytes, "a test");
    const std::unique_ptr<Buffer> workspace =
        device.allocate(std::max(kernel.workspace(first.site(), 80), kernel.workspace(second.site(), 80)), "a test");
    const auto both = [&](std::int64_t rows, bool spoil) {
      Random inputs(8);
      test::TypedMatrix x(*stream, type, rows, kInputs), between(*stream, DType::f32, rows, kBetween),
          y(*stream, type, rows, kOutputs), nothing(*stream, DType::f32, rows, kBetween);
      for (std::int64_t m = 0; m < rows; ++m) {
        for (std::int64_t k = 0; k < kInputs; ++k) x.set(m, k, static_cast<float>(inputs.below(2001)) / 1000 - 1);
        for (std::int64_t n = 0; n < kBetween; ++n) between.set(m, n, static_cast<float>(m + n % 7));
      }
      x.upload();
      between.upload();
      const std::vector<std::uint8_t> nan(bytes, 0xff);
      stream->copy_to_device(copy->data(), nan.data(), bytes);
      const MatrixRef middle = between.ref();
      LinearArgs args;
      args.rows = rows;
      args.x = x.ref();
      args.y = std::span(&middle, 1);
      args.residual = middle;
      args.workspace = workspace->data();
      kernel.enqueue(*writer, args, *stream);
      const MatrixRef out = y.ref();
      args.x = spoil ? nothing.ref() : middle;
      args.norm_weight = norm_weight.data();
      args.y = std::span(&out, 1);
      args.residual = {};
      kernel.enqueue(*reader, args, *stream);
      stream->synchronize();
      y.download();
      return y.values();
    };
    const std::vector<std::int64_t> row_counts = {1, 3, 8, 9, 16, 17, 50, 64, 65, 80};
    std::vector<std::vector<float>> before;
    before.reserve(row_counts.size());
    for (const std::int64_t rows : row_counts) before.push_back(both(rows, false));
    auto& order = dynamic_cast<OutputOrder&>(*writer);
    EXPECT_FALSE(order.copy_out_for(*writer, norm_weight.data(), copy->data(), device, *stream)) << "its own inputs";
    ASSERT_TRUE(order.copy_out_for(*reader, norm_weight.data(), copy->data(), device, *stream));
    for (std::size_t i = 0; i < row_counts.size(); ++i) {
      const std::vector<float> after = both(row_counts[i], row_counts[i] <= kMostCopiedRows);
      // Sums of squares may be added in another order.
      for (std::size_t at = 0; at < after.size(); ++at) {
        ASSERT_NEAR(after[at], before[i][at], 1e-2 * std::abs(before[i][at]) + 1e-3)
            << bits << " bits, " << row_counts[i] << " rows, value " << at;
      }
    }
  }
}

// Products of which each reads what the one before it writes, in a graph where they overlap, give the bits that they
// give one by one. Of a size with two thread blocks a multiprocessor, and one with longer rings.
TEST(CudaKernels, ChainsOfProductsWaitForEachOther) {
  NIBBLE_NEEDS_GPU();
  Device& device = test::gpu().device();
  const std::unique_ptr<Stream> stream = device.make_stream();
  const LinearKernel& kernel = kernel_named("nibble", DeviceKind::cuda);
  for (const auto& [size, act_order] : {std::pair<std::int64_t, bool>{2048, false}, {2048, true}, {9216, false}}) {
    const RandomSite random({.in_features = size,
                             .out_features = {size},
                             .gptq = GptqFormat{4, 128, act_order, true},
                             .compute = DType::bf16,
                             .seed = 700,
                             .keep_weights = false});
    LinearSite site = fused_site(random.site(), kernel.fit(random.site(), device.info(), 16));
    site.x_dtype = site.y_dtype = DType::bf16;
    const std::unique_ptr<PackedLinear> packed = kernel.pack(site, random.tensors(), device, *stream);
    for (const std::int64_t rows : {1, 4, 8, 16}) {
      const std::unique_ptr<Buffer> workspace = device.allocate(kernel.workspace(site, rows), "a test");
      constexpr int kCalls = 6;
      std::vector<std::unique_ptr<test::TypedMatrix>> links;
      links.reserve(kCalls + 1);
      for (int i = 0; i <= kCalls; ++i)
        links.push_back(std::make_unique<test::TypedMatrix>(*stream, DType::bf16, rows, size));
      std::mt19937 numbers(9);
      links.front()->fill(numbers);
      const auto enqueue = [&](int i) {
        const MatrixRef y = links[static_cast<std::size_t>(i) + 1]->ref();
        LinearArgs args;
        args.rows = rows;
        args.x = links[static_cast<std::size_t>(i)]->ref();
        args.y = std::span(&y, 1);
        args.workspace = workspace->data();
        kernel.enqueue(*packed, args, *stream);
      };
      for (int i = 0; i < kCalls; ++i) {
        enqueue(i);
        stream->synchronize();
      }
      links.back()->download();
      const std::vector<float> expected = links.back()->values();
      for (const float value : expected) ASSERT_TRUE(std::isfinite(value)) << rows << " rows of " << size;
      stream->begin_capture();
      for (int i = 0; i < kCalls; ++i) enqueue(i);
      const std::unique_ptr<Graph> graph = stream->end_capture();
      const std::vector<std::uint16_t> nan(static_cast<std::size_t>(rows * size), 0xffff);
      for (int round = 0; round < 20; ++round) {
        for (int i = 1; i <= kCalls; ++i)
          stream->copy_to_device(links[static_cast<std::size_t>(i)]->ref().data, nan.data(), nan.size() * 2);
        stream->launch(*graph);
        links.back()->download();
        ASSERT_EQ(links.back()->values(), expected) << rows << " rows of " << size << ", round " << round;
      }
    }
  }
}

// A thousand replays of a captured call, all of the same bits, for kernels that say so.
TEST(CudaKernels, ReplaysAreBitEqual) {
  NIBBLE_NEEDS_GPU();
  const RandomSite random({.in_features = 5632,
                           .out_features = {2048},
                           .gptq = GptqFormat{4, 128, true, false},
                           .compute = DType::f16,
                           .seed = 400});
  Device& device = test::gpu().device();
  const std::unique_ptr<Stream> stream = device.make_stream();
  for (const LinearKernel* kernel : kernels_for(DeviceKind::cuda)) {
    const Fit fit = kernel->fit(random.site(), device.info(), 16);
    if (!kernel->traits().deterministic || !fit.ok) continue;
    LinearSite site = lowered(random, fit);
    const std::unique_ptr<PackedLinear> packed = kernel->pack(site, random.tensors(), device, *stream);
    for (const std::int64_t rows : {1, 7, 16}) {
      std::vector<std::uint16_t> x(static_cast<std::size_t>(rows * 5632));
      Random numbers(5);
      // Finite f16 values of both signs between 2^-7 and 2.
      for (std::uint16_t& v : x)
        v = static_cast<std::uint16_t>((numbers.below(2) << 15) | (0x2000 + numbers.below(0x2000)));
      const test::OnDevice<std::uint16_t> inputs(*stream, x);
      std::vector<std::uint16_t> nan(static_cast<std::size_t>(rows * 2048), 0xffff);
      const test::OnDevice<std::uint16_t> outputs(*stream, nan);
      const std::unique_ptr<Buffer> workspace = device.allocate(kernel->workspace(site, rows), "a test");
      const MatrixRef y{outputs.data(), DType::f16, rows, 2048, 2048};
      LinearArgs args;
      args.rows = rows;
      args.x = {inputs.data(), DType::f16, rows, 5632, 5632};
      args.y = std::span(&y, 1);
      args.workspace = workspace->data();
      stream->begin_capture();
      kernel->enqueue(*packed, args, *stream);
      const std::unique_ptr<Graph> graph = stream->end_capture();
      stream->launch(*graph);
      const std::vector<std::uint16_t> first = outputs.read();
      for (int round = 0; round < 20; ++round) {
        stream->copy_to_device(outputs.data(), nan.data(), nan.size() * 2);
        for (int i = 0; i < 50; ++i) stream->launch(*graph);
        ASSERT_EQ(outputs.read(), first) << kernel->name() << " with " << rows << " rows, round " << round;
      }
    }
  }
}

}  // namespace
}  // namespace nibble
